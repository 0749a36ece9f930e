"""The trainers that learn from given text: pre-training and supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm.core.spec import knob
from llm.data.specs import LOSS_ON, TOO_LONG
from llm.train.optimizer_specs import AdamWSpec, OptimizerSpec
from llm.train.trainer_spec import TrainerSpec

if TYPE_CHECKING:
    from llm.data.conversations import ChatSettings
    from llm.train.experiment import ExperimentSpec
    from llm.train.origin import Origin
    from llm.train.step import Objective
    from llm.train.trainer import Trainer


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
