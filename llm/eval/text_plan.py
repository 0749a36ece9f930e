"""Which text a checkpoint is scored on, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass

from llm.core.spec import RefusedError
from llm.data.conversations import ChatSettings
from llm.data.specs import DocumentsSpec
from llm.eval.specs import TextSpec
from llm.hub.pretrained import Pretrained
from llm.train.experiment import ExperimentSpec
from llm.train.supervised_specs import PretrainSpec, SFTSpec

_FRACTION = 0.005  # as in a run that says nothing else


@dataclass(frozen=True)
class TextPlan:
    """Which text, and how it is read."""

    sources: tuple[DocumentsSpec, ...]
    eval_fraction: float
    chat: ChatSettings | None
    """None: plain documents."""


def text_plan(
    pretrained: Pretrained, experiment: ExperimentSpec | None, data: TextSpec
) -> TextPlan:
    """The text that the words name, or that the checkpoint was trained on.

    Args:
        pretrained: the checkpoint.
        experiment: of its run; None if it comes from elsewhere.
        data: the words.

    Raises:
        RefusedError: neither is there, or conversations are to be read without a chat template.
    """
    loss_on = data.loss_on
    sources: tuple[DocumentsSpec, ...] = (data,)
    if data.source == "auto":
        if experiment is None:
            raise RefusedError(
                f"checkpoint={pretrained.source}: what it was trained on is not known here; name a "
                "text (data.source=text data.path=...), tasks=[...] or suite=core"
            )
        trainer = experiment.trainer
        if isinstance(trainer, SFTSpec):
            loss_on = trainer.loss_on
        elif not isinstance(trainer, PretrainSpec):
            raise RefusedError(
                f"checkpoint={pretrained.source}: trainer={trainer.name} learned from rewards, its "
                "data has no text to score; name tasks=[...] or a text (data.source=...)"
            )
        sources = experiment.data.sources
    fraction = data.eval_fraction
    if fraction is None:
        own = experiment.data.eval_fraction if experiment and data.source == "auto" else 0.0
        fraction = own or _FRACTION
    return TextPlan(sources, fraction, _chat(pretrained, loss_on))


def _chat(pretrained: Pretrained, loss_on: str) -> ChatSettings | None:
    if loss_on == "text":
        return None
    template = pretrained.chat_template
    if template is None:
        raise RefusedError(
            f"data.loss_on={loss_on}: {pretrained.source} has no chat template; data.loss_on=text "
            "reads plain documents"
        )
    names = {index: name for name, index in pretrained.tokenizer.special_ids.items()}
    return ChatSettings(template, loss_on=loss_on, end=names.get(pretrained.end_ids[0]))
