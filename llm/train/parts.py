"""The jitted parts of a run, made from its specs alone: to run it, or to know what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from llm.core.hardware import HardwareSpec
from llm.models.specs import ModelSpec
from llm.train.experiment import ExperimentSpec
from llm.train.specs import BatchRows
from llm.train.state import StateFactory
from llm.train.step import Stepper


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
    mesh: Mesh

    @cached_property
    def rows(self) -> BatchRows:
        """Of a batch."""
        return self.experiment.trainer.batch_rows(self.experiment, self.hardware, self.platform)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the trained weights."""
        return self.experiment.trainer.optimizer.build(self._schedule)

    def _schedule(self, peak: float) -> optax.Schedule:
        trainer = self.experiment.trainer
        return trainer.schedule.build(peak, trainer.steps)

    @cached_property
    def factory(self) -> StateFactory:
        """Makes the first state."""
        trainer = self.experiment.trainer
        return StateFactory(
            model=self.model,
            optimizer=self.optimizer,
            seed=self.experiment.seed,
            use_ema=trainer.ema_decay is not None,
            param_dtype=self.hardware.param_dtype,
            mesh=self.mesh,
            freeze=trainer.freeze,
            compute_dtype=self.hardware.compute_dtype,
            use_reference=trainer.keeps_reference,
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
            objective=trainer.objective(hardware.loss_chunk),
            optimizer=self.optimizer,
            schedule=self._schedule(trainer.optimizer.lr),
            seed=self.experiment.seed,
            compute_dtype=hardware.compute_dtype,
            micro_batches=self.rows.micro_batches,
            grad_clip=trainer.grad_clip,
            ema_decay=trainer.ema_decay,
            freeze=trainer.freeze,
            move_reference=trainer.mover(),
        )

    def train_step(self, compiler_options: dict[str, Any]) -> jax.stages.Wrapped:
        """The jitted step; the state is donated to it."""
        return jax.jit(
            self.stepper.train_step,
            donate_argnums=0,
            out_shardings=(self.factory.shardings, None),
            compiler_options=compiler_options,
        )
