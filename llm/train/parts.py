"""The jitted parts of a run, made from its specs alone: to run it, or to know what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from llm.core.hardware import HardwareSpec
from llm.models.specs import ModelSpec
from llm.train.experiment import ExperimentSpec
from llm.train.state import StateFactory
from llm.train.step import Stepper
from llm.train.trainer_spec import BatchRows, TrainerSpec


@dataclass(frozen=True)
class Parts:
    """Of an experiment on some devices, which need not be there."""

    experiment: ExperimentSpec
    model: ModelSpec
    """Of the experiment, with the size of its vocabulary settled."""
    hardware: HardwareSpec
    """With nothing left open, see `HardwareSpec.settled`."""
    platform: str
    """Of the devices, such as cpu."""
    mesh: Mesh | AbstractMesh

    @cached_property
    def rows(self) -> BatchRows:
        """Of a batch."""
        return self.experiment.trainer.batch_rows(self.experiment, self.hardware, self.platform)

    @cached_property
    def factory(self) -> StateFactory:
        """Makes the first state."""
        hardware, trainer = self.hardware, self.experiment.trainer
        return _factory(
            self.model, trainer, self.experiment.seed, hardware.compute_dtype, self.mesh
        )

    @cached_property
    def stepper(self) -> Stepper:
        """Makes the step."""
        trainer, hardware = self.experiment.trainer, self.hardware
        assert hardware.loss_chunk is not None
        return Stepper(
            model=self.model,
            remat=hardware.remat,
            attention=hardware.attention,
            objective=trainer.objective(hardware.loss_chunk, hardware.row_shards),
            optimizer=trainer.optimizer,
            schedule=lambda peak: trainer.schedule.build(peak, trainer.steps),
            seed=self.experiment.seed,
            compute_dtype=hardware.compute_dtype,
            micro_batches=self.rows.micro_batches,
            grad_clip=trainer.grad_clip,
            ema_decay=trainer.ema_decay,
            freeze=trainer.freeze,
            mesh=self.mesh if hardware.devices > 1 else None,
            move_reference=trainer.mover(),
        )

    @property
    def peaks(self) -> dict[str, np.ndarray]:
        """Peak learning rates, which the step takes as arrays."""
        peaks = self.experiment.trainer.optimizer.peaks
        return {name: np.asarray(peak, np.float32) for name, peak in peaks.items()}

    def train_step(self, compiler_options: dict[str, Any]) -> jax.stages.Wrapped:
        """The jitted step; the state is donated to it."""
        return jax.jit(
            self.stepper.train_step,
            donate_argnums=0,
            out_shardings=(self.factory.shardings, None),
            compiler_options=compiler_options,
        )


@lru_cache(maxsize=4)  # a plan tries many ways to run the same thing
def _factory(
    model: ModelSpec,
    trainer: TrainerSpec,
    seed: int,
    compute_dtype: str,
    mesh: Mesh | AbstractMesh,
) -> StateFactory:
    peaks, steps = trainer.optimizer.peaks, trainer.steps
    rates = {name: trainer.schedule.build(peak, steps) for name, peak in peaks.items()}
    return StateFactory(
        model=model,
        optimizer=trainer.optimizer.build(rates),
        seed=seed,
        use_ema=trainer.ema_decay is not None,
        mesh=mesh,
        freeze=trainer.freeze,
        compute_dtype=compute_dtype,
        use_reference=trainer.keeps_reference,
    )
