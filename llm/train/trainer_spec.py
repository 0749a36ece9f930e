"""What every trainer has, and what it tells the rest of a run about itself."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from llm.core.spec import RefusedError, Spec, knob
from llm.train.optimizer_specs import AdamWSpec, OptimizerSpec
from llm.train.schedules import ScheduleSpec, WarmupCosineSpec

if TYPE_CHECKING:
    from llm.core.hardware import HardwareSpec
    from llm.data.conversations import ChatSettings
    from llm.train.experiment import ExperimentSpec
    from llm.train.origin import Origin
    from llm.train.step import Objective
    from llm.train.trainer import Trainer


Shaped = tuple[tuple[int, ...], str]
"""Shape and type of an array."""


class BatchRows(NamedTuple):
    """Of a batch, over all devices."""

    total: int
    at_once: int
    """That go through the model together."""

    @property
    def micro_batches(self) -> int:
        """How many times that makes."""
        return self.total // self.at_once


@dataclass(frozen=True, kw_only=True)
class TrainerSpec(Spec, abc.ABC):
    """What every trainer has."""

    pretrained: ClassVar[bool] = False
    """Starts from the model's published weights unless told otherwise."""

    name: str = knob(doc="name of the trainer, used in the names of runs")
    steps: int = knob(doc="optimizer steps", gt=0)
    optimizer: OptimizerSpec = knob(AdamWSpec(), "optimizer")
    schedule: ScheduleSpec = knob(WarmupCosineSpec(), "learning rate over the steps")
    grad_clip: float | None = knob(1.0, "largest global norm of the gradient; null: no limit", gt=0)
    ema_decay: float | None = knob(
        None, "decay per step of averaged weights, used to evaluate and sample; null: none",
        gt=0, lt=1,
    )  # fmt: skip
    freeze: Sequence[str] = knob(
        [], "parameters that are not trained: patterns such as embedding, blocks.0 or *.bias"
    )

    def metrics(self, experiment: ExperimentSpec) -> list[str]:
        """Names of what its runs log, as shell patterns; first what runs are compared by."""
        held_out = self.held_out_metrics(experiment) if experiment.data.eval_fraction else []
        return [*held_out, *self.step_metrics]

    @property
    def step_metrics(self) -> list[str]:
        """Names of what each step logs; first what runs without held-out data are compared by."""
        return [
            *("train/loss", "train/grad_norm", "train/lr", "perf/step_time", "perf/data_wait"),
            *("perf/tokens_per_second", "perf/memory_gib", "perf/mfu"),
            *("perf/compile_count", "perf/compile_time"),
        ]

    def held_out_metrics(self, experiment: ExperimentSpec) -> list[str]:
        """Names of what is measured on held-out data, as shell patterns."""
        several = len(experiment.data.sources) > 1
        parts = ["eval/*/loss", "eval/*/bits_per_byte"] if several else []
        return ["eval/loss", "eval/bits_per_byte", *parts]

    @property
    def keeps_reference(self) -> bool:
        """The state holds weights from another time, to stay near."""
        return False

    def check_with(self, experiment: ExperimentSpec) -> None:
        """Refuse what does not go with the rest of the experiment.

        Raises:
            RefusedError: with what to change.
        """
        data, hardware = experiment.data, experiment.hardware
        rows = (hardware.micro_batch or 1) * hardware.row_shards
        if data.batch_size % rows:
            raise RefusedError(
                f"data.batch_size={data.batch_size}: must be a multiple of {rows}, "
                f"{hardware.micro_batch or 1} rows (hardware.micro_batch) "
                f"x {hardware.row_shards} devices that share them"
            )

    def check_available(self) -> None:
        """Refuse files and functions that are not there, before a run begins.

        Raises:
            RefusedError: with what is missing.
        """

    def check(self) -> None:  # noqa: D102
        if self.schedule.warmup_steps >= self.steps:
            raise RefusedError(
                f"schedule.warmup_steps={self.schedule.warmup_steps}: must be less than "
                f"steps={self.steps}"
            )

    @abc.abstractmethod
    def objective(self, loss_chunk: int, row_shards: int = 1) -> Objective:
        """The loss.

        Args:
            loss_chunk: tokens of each device whose logits exist at the same time.
            row_shards: parts that the rows of a batch are in, each on devices of its own.
        """

    def mover(self) -> Callable[[Any, Any, Any], Any] | None:
        """How the reference follows the trained weights, see `Stepper.move_reference`."""
        return None

    def batch_rows(
        self, experiment: ExperimentSpec, hardware: HardwareSpec, platform: str
    ) -> BatchRows:
        """Rows of a batch.

        Args:
            experiment: that this is the trainer of.
            hardware: decides how many go through the model together.
            platform: of the devices, such as cpu.
        """
        del platform
        rows = experiment.data.batch_size
        return BatchRows(rows, (hardware.micro_batch or 0) * hardware.row_shards or rows)

    def tokens_per_step(self, experiment: ExperimentSpec) -> int:
        """Tokens that go through the model for an update, if its rows are full."""
        return experiment.data.batch_size * experiment.data.seq_len

    def batch_arrays(self, experiment: ExperimentSpec, rows: BatchRows) -> dict[str, Shaped]:
        """Shape and type of each array of the largest batch."""
        from llm.data.rows import ARRAYS

        return dict.fromkeys(ARRAYS, ((rows.total, experiment.data.seq_len), "int32"))

    def chat(self, own: str | None, *, given: bool) -> ChatSettings | None:
        """How conversations are read; None: what is read is plain text.

        Args:
            own: the chat template that comes with the first weights.
            given: it is the one to use: this very run was begun with it.

        Raises:
            RefusedError: a template's file cannot be read.
        """
        del own, given
        return None

    @abc.abstractmethod
    def build(self, experiment: ExperimentSpec, origin: Origin, share: tuple[int, int]) -> Trainer:
        """Read the data, and make the trainer.

        Args:
            experiment: that this is the trainer of.
            origin: of the first weights.
            share: of each batch that this process makes, see `llm.core.mesh.host_share`.

        Raises:
            RefusedError: the data cannot be read, or there is nothing to train on.
        """
