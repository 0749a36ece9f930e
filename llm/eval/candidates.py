"""The models to be evaluated: loaded one after the other, checked, with what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llm.core.machine import Machine
from llm.core.spec import RefusedError, spec_from_json
from llm.data.conversations import ChatSettings
from llm.data.specs import DocumentsSpec
from llm.data.tokenizer import Tokenizer
from llm.eval.scorer import Scorer
from llm.eval.specs import EvaluateSpec
from llm.generate.language_model import LanguageModel, load
from llm.hub.checkpoints import read_checkpoint_meta
from llm.hub.pretrained import Pretrained
from llm.models.kernels import check_kernel
from llm.train.experiment import ExperimentSpec
from llm.train.supervised_specs import PretrainSpec, SFTSpec

_FRACTION = 0.005  # as in a run that says nothing else


@dataclass(frozen=True)
class Candidate:
    """A model and how it is scored."""

    words: str
    """What the user calls it; of `last`, the checkpoint that it was."""
    lm: LanguageModel
    scorer: Scorer
    experiment: ExperimentSpec | None
    """Of the run it comes from; None if it comes from elsewhere."""

    @property
    def n_params(self) -> int:
        """Numbers it is made of."""
        return sum(x.size for x in jax.tree.leaves(self.lm.params))

    def identity(self) -> dict[str, Any]:
        """What tells this checkpoint from others, as JSON."""
        lineage = self.lm.pretrained.lineage
        return {
            "checkpoint": self.words,
            "lineage": lineage,
            "model": self.lm.spec.name,
            "parameters": self.n_params,
            "tokenizer": self.lm.tokenizer.fingerprint,
            "vocabulary": self.lm.tokenizer.vocab_size,
            "context": self.scorer.context,
        }


def candidate(words: str, spec: EvaluateSpec, machine: Machine) -> Candidate:
    """Load a model.

    Raises:
        RefusedError: there is none, it is not the one for the tokenizer that is given, or it does
            not see as much as the context that is wanted.
    """
    hardware = machine.spec
    types = {"compute_dtype": hardware.compute_dtype, "cache_dtype": hardware.cache_dtype}
    lm = load(words, dtype=spec.dtype, **types)
    experiment = _experiment(lm.pretrained)
    _check_pairing(words, lm, spec.data.tokenizer.path)
    context = spec.context
    if context is None:
        context = lm.spec.max_seq_len
        if experiment is not None:
            # Beyond that, positions may be ones that it was never trained on.
            context = min(context, experiment.data.seq_len)
    if context > lm.spec.max_seq_len:
        raise RefusedError(f"context={context}: {words} sees {lm.spec.max_seq_len} tokens at most")
    if spec.stride is not None and spec.stride > context:
        raise RefusedError(f"stride={spec.stride}: longer than the context of {words}, {context}")
    check_kernel(hardware.attention, lm.spec, hardware.compute_dtype)
    scorer = Scorer(
        lm.engine,
        context=context,
        attention=hardware.attention,
        loss_chunk=hardware.loss_chunk or 512,
        batch_tokens=spec.batch_tokens,
    )
    return Candidate(lm.pretrained.source, lm, scorer, experiment)


def _check_pairing(words: str, lm: LanguageModel, path: str | None) -> None:
    if lm.tokenizer.vocab_size > lm.spec.vocab:
        raise RefusedError(
            f"checkpoint={words}: its tokenizer has {lm.tokenizer.vocab_size} tokens, the model "
            f"only {lm.spec.vocab}: they do not belong together"
        )
    if path is not None and Tokenizer.load(path).fingerprint != lm.tokenizer.fingerprint:
        raise RefusedError(
            f"data.tokenizer.path={path}: is another tokenizer than that of checkpoint={words}; a "
            "model can only be evaluated with its own (leave the word out to take that)"
        )


def _experiment(pretrained: Pretrained) -> ExperimentSpec | None:
    """The run's, which its checkpoints carry."""
    folder = pretrained.lineage.get("checkpoint")
    if folder is None:
        return None
    specs = read_checkpoint_meta(Path(folder)).get("experiment")
    experiment = None if specs is None else spec_from_json(specs)
    return experiment if isinstance(experiment, ExperimentSpec) else None


@dataclass(frozen=True)
class TextPlan:
    """Which text, and how it is read."""

    sources: tuple[DocumentsSpec, ...]
    eval_fraction: float
    chat: ChatSettings | None


def text_plan(model: Candidate, spec: EvaluateSpec) -> TextPlan:
    """The text that the words name, or that the checkpoint was trained on.

    Raises:
        RefusedError: neither is there, or conversations are to be read without a chat template.
    """
    data, experiment = spec.data, model.experiment
    loss_on = data.loss_on
    sources: tuple[DocumentsSpec, ...] = (data,)
    if data.source == "auto":
        if experiment is None:
            raise RefusedError(
                f"checkpoint={model.words}: what it was trained on is not known here; name a text "
                "(data.source=text data.path=...), tasks=[...] or suite=core"
            )
        trainer = experiment.trainer
        if isinstance(trainer, SFTSpec):
            loss_on = trainer.loss_on
        elif not isinstance(trainer, PretrainSpec):
            raise RefusedError(
                f"checkpoint={model.words}: trainer={trainer.name} learned from rewards, its data "
                "has no text to score; name tasks=[...] or a text (data.source=...)"
            )
        sources = experiment.data.sources
    fraction = data.eval_fraction
    if fraction is None:
        own = experiment.data.eval_fraction if experiment and data.source == "auto" else 0.0
        fraction = own or _FRACTION
    return TextPlan(sources, fraction, _chat(model, loss_on))


def _chat(model: Candidate, loss_on: str) -> ChatSettings | None:
    if loss_on == "text":
        return None
    template = model.lm.chat_template
    if template is None:
        raise RefusedError(
            f"data.loss_on={loss_on}: {model.words} has no chat template; data.loss_on=text reads "
            "plain documents"
        )
    names = {index: name for name, index in model.lm.tokenizer.special_ids.items()}
    return ChatSettings(template, loss_on=loss_on, end=names.get(model.lm.stop_ids[0]))
