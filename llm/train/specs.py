"""How a model is trained: optimizers, learning-rate schedules, trainers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from llm.core.spec import RefusedError, Spec, knob
from llm.data.specs import LOSS_ON, TOO_LONG

if TYPE_CHECKING:
    import optax

    from llm.core.hardware import HardwareSpec
    from llm.data.conversations import ChatSettings
    from llm.train.experiment import ExperimentSpec
    from llm.train.origin import Origin
    from llm.train.step import Objective
    from llm.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(Spec, abc.ABC):
    """Learning rate over the optimizer steps: a linear warm-up, then what the subclass does."""

    warmup_steps: int = knob(20, "steps from 0 to the peak", ge=0)

    @abc.abstractmethod
    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:
        """The schedule of the `steps` that follow the warm-up."""

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """Learning rate as a function of the step, for a run of `steps` steps in all."""
        import optax

        after = self.after_warmup(peak, max(steps - self.warmup_steps, 1))
        if not self.warmup_steps:
            return after
        # The first update is made with peak / warmup_steps, not with 0: no step is wasted.
        warmup = optax.linear_schedule(peak / self.warmup_steps, peak, self.warmup_steps - 1)
        return optax.join_schedules([warmup, after], [self.warmup_steps])


@dataclass(frozen=True, kw_only=True)
class WarmupCosineSpec(ScheduleSpec):
    """Half a cosine from the peak to `final_fraction` of it (Loshchilov and Hutter 2017)."""

    final_fraction: float = knob(
        0.1, "learning rate at the end, as a share of the peak", ge=0, le=1
    )

    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:  # noqa: D102
        import optax

        return optax.cosine_decay_schedule(peak, steps, self.final_fraction)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecaySpec(ScheduleSpec):
    """The peak for most of the run, then a straight line down (Hu et al. 2024)."""

    decay_fraction: float = knob(0.2, "share of the run spent decaying", gt=0, le=1)
    final_fraction: float = knob(
        0.0, "learning rate at the end, as a share of the peak", ge=0, le=1
    )

    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:  # noqa: D102
        import optax

        decay = max(round(self.decay_fraction * (steps + self.warmup_steps)), 1)
        decay = min(decay, steps)
        return optax.linear_schedule(peak, self.final_fraction * peak, decay, steps - decay)


@dataclass(frozen=True, kw_only=True)
class LinearSpec(ScheduleSpec):
    """A straight line from the peak to `final_fraction` of it."""

    final_fraction: float = knob(
        0.0, "learning rate at the end, as a share of the peak", ge=0, le=1
    )

    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:  # noqa: D102
        import optax

        return optax.linear_schedule(peak, self.final_fraction * peak, steps)


@dataclass(frozen=True, kw_only=True)
class ConstantSpec(ScheduleSpec):
    """The peak until the end."""

    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:  # noqa: D102
        import optax

        return optax.constant_schedule(peak)


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec, abc.ABC):
    """What every optimizer has."""

    lr: float = knob(doc="peak learning rate", gt=0)

    @abc.abstractmethod
    def build(self, schedule: Callable[[float], optax.Schedule]) -> optax.GradientTransformation:
        """Make the optax transformation; `schedule(peak)` gives the learning rate per step."""


@dataclass(frozen=True, kw_only=True)
class AdamWSpec(OptimizerSpec):
    """AdamW (Loshchilov and Hutter 2019); weights decay, biases and norm scales do not."""

    lr: float = knob(2e-3, "peak learning rate", gt=0)
    b1: float = knob(0.9, "decay of the mean of gradients", ge=0, lt=1)
    b2: float = knob(0.95, "decay of the mean of squared gradients", ge=0, lt=1)
    eps: float = knob(1e-8, "added to the root of the mean square", gt=0)
    weight_decay: float = knob(0.1, "share of a matrix removed per step, times the rate", ge=0)

    def build(self, schedule: Callable[[float], optax.Schedule]) -> optax.GradientTransformation:  # noqa: D102
        import optax

        from llm.train.optimizers import is_matrix

        return optax.adamw(
            schedule(self.lr),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=is_matrix,
        )


@dataclass(frozen=True, kw_only=True)
class MuonSpec(OptimizerSpec):
    """Muon for the matrices of the blocks, AdamW for the rest (Jordan et al. 2024).

    The rest is embeddings, the head, biases and norm scales. Updates are scaled to AdamW's usual
    root mean square (Liu et al. 2025), so that both learning rates have the same meaning.
    """

    lr: float = knob(1e-3, "peak learning rate of the matrices", gt=0)
    momentum: float = knob(0.95, "decay of the mean of gradients", ge=0, lt=1)
    newton_schulz_steps: int = knob(5, "iterations that make the update orthogonal", gt=0)
    weight_decay: float = knob(0.1, "share of a matrix removed per step, times the rate", ge=0)
    adam_lr: float = knob(1e-3, "peak learning rate of the rest", gt=0)
    adam_b1: float = knob(0.9, "AdamW's b1 for the rest", ge=0, lt=1)
    adam_b2: float = knob(0.95, "AdamW's b2 for the rest", ge=0, lt=1)
    eps: float = knob(1e-8, "added to denominators", gt=0)

    def build(self, schedule: Callable[[float], optax.Schedule]) -> optax.GradientTransformation:  # noqa: D102
        import optax.contrib

        from llm.train.optimizers import is_matrix, muon_or_adamw

        muon = optax.contrib.muon(
            schedule(self.lr),
            beta=self.momentum,
            ns_steps=self.newton_schulz_steps,
            eps=self.eps,
            weight_decay=self.weight_decay,
            consistent_rms=0.2,
        )
        # Not optax's own AdamW inside `muon`: that one uses Nesterov momentum.
        adamw = optax.adamw(
            schedule(self.adam_lr),
            b1=self.adam_b1,
            b2=self.adam_b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=is_matrix,
        )
        return optax.partition({"muon": muon, "adamw": adamw}, muon_or_adamw)


@dataclass(frozen=True, kw_only=True)
class OptaxSpec(OptimizerSpec):
    """Any other optimizer of optax, by the name of its function: lion, adafactor, sgd, ..."""

    optimizer: str = knob(doc="name of a function in optax or optax.contrib")
    options: dict[str, Any] = knob({}, "its keyword arguments besides learning_rate")

    def build(self, schedule: Callable[[float], optax.Schedule]) -> optax.GradientTransformation:  # noqa: D102
        from llm.train.optimizers import optax_by_name

        return optax_by_name(self.optimizer, schedule(self.lr), self.options)


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


@dataclass(frozen=True, kw_only=True)
class PretrainSpec(TrainerSpec):
    """Next-token prediction on every token."""

    name: str = knob("pretrain", "name of the trainer, used in the names of runs")
    steps: int = knob(600, "optimizer steps", gt=0)
    z_loss: float = knob(0.0, "weight of the squared log-partition (PaLM uses 1e-4)", ge=0)
    label_smoothing: float = knob(0.0, "share of the target spread evenly", ge=0, lt=1)

    def objective(self, loss_chunk: int, row_shards: int = 1) -> Objective:  # noqa: D102
        from llm.train.next_token import NextToken

        return NextToken(loss_chunk, self.z_loss, self.label_smoothing, row_shards=row_shards)

    def build(self, experiment: ExperimentSpec, origin: Origin, share: tuple[int, int]) -> Trainer:  # noqa: D102
        from llm.train.supervised import Supervised

        return Supervised(experiment, origin, share)


@dataclass(frozen=True, kw_only=True)
class SFTSpec(TrainerSpec):
    """Supervised fine-tuning on conversations: what the assistant says is predicted."""

    pretrained: ClassVar[bool] = True

    name: str = knob("sft", "name of the trainer, used in the names of runs")
    steps: int = knob(600, "optimizer steps", gt=0)
    optimizer: OptimizerSpec = knob(AdamWSpec(lr=2e-4), "optimizer")
    loss_on: str = knob(
        "assistant",
        "what is trained: the assistant's turns, the last one, what follows the prompt, or all",
        choices=LOSS_ON,
    )
    too_long: str = knob(
        "cut_right", "conversations longer than a row: keep their beginning, end, parts, or none",
        choices=TOO_LONG,
    )  # fmt: skip
    template: str | None = knob(
        None, "file with a chat template; null: the model's own, or ChatML if it has none"
    )
    label_smoothing: float = knob(0.0, "share of the target spread evenly", ge=0, lt=1)
    neftune_alpha: float = knob(0.0, "noise on embeddings (the paper uses 5 to 15)", ge=0)
    questions: int = knob(
        32, "held-out prompts that are answered with the samples, to compare answers", ge=0
    )
    preview: int = knob(1, "examples to print at the start, with what is trained of them", ge=0)

    def held_out_metrics(self, experiment: ExperimentSpec) -> list[str]:  # noqa: D102
        answers = self.questions and experiment.samples.every
        names = super().held_out_metrics(experiment)
        return [*names, "eval/exact_match"] if answers else names

    def chat(self, own: str | None, *, given: bool) -> ChatSettings | None:  # noqa: D102
        from llm.data.chat_template import CHATML, read_template
        from llm.data.conversations import ChatSettings

        if self.template is not None and not given:
            own = read_template(self.template)
        template = CHATML if own is None else own
        return ChatSettings(template, loss_on=self.loss_on, too_long=self.too_long)

    def objective(self, loss_chunk: int, row_shards: int = 1) -> Objective:  # noqa: D102
        from llm.train.next_token import NextToken

        return NextToken(
            loss_chunk,
            label_smoothing=self.label_smoothing,
            noise_alpha=self.neftune_alpha,
            row_shards=row_shards,
        )

    def build(self, experiment: ExperimentSpec, origin: Origin, share: tuple[int, int]) -> Trainer:  # noqa: D102
        from llm.train.supervised import Supervised

        return Supervised(experiment, origin, share, self.questions, self.preview)
