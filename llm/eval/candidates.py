"""The checkpoints to be evaluated: all are opened and checked before the first is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError, spec_from_json
from llm.data.tokenizer import Tokenizer
from llm.eval.asking import Asking, asking, check_length, shots_for
from llm.eval.questions import QuestionSet, question_set
from llm.eval.scorer import Scorer
from llm.eval.specs import EvaluateSpec
from llm.eval.text_loss import Corpus, read_corpora
from llm.eval.text_plan import TextPlan, text_plan
from llm.generate.language_model import LanguageModel, load
from llm.hub.checkpoints import read_checkpoint_meta
from llm.hub.pretrained import Pretrained
from llm.hub.sources import open_source
from llm.models.kernels import check_kernel
from llm.train.experiment import ExperimentSpec


@dataclass(frozen=True)
class Candidate:
    """A checkpoint whose weights are not read yet, and what it is scored on."""

    pretrained: Pretrained
    context: int
    """Tokens that it is given at once."""
    how: Asking
    tasks: tuple[QuestionSet, ...]
    text: TextPlan | None
    """None: no text."""

    @property
    def words(self) -> str:
        """What the user calls it; of `last`, the checkpoint that it was."""
        return self.pretrained.source

    def load(self, spec: EvaluateSpec, hardware: HardwareSpec) -> tuple[LanguageModel, Scorer]:
        """Read the weights."""
        lm = load(
            self.pretrained,
            dtype=spec.dtype,
            compute_dtype=hardware.compute_dtype,
            cache_dtype=hardware.cache_dtype,
        )
        scorer = Scorer(
            lm.engine,
            context=self.context,
            attention=hardware.attention,
            loss_chunk=hardware.loss_chunk or 512,
            batch_tokens=spec.batch_tokens,
        )
        return lm, scorer

    def identity(self) -> dict[str, Any]:
        """What tells this checkpoint from others, as JSON."""
        tokenizer = self.pretrained.tokenizer
        return {
            "checkpoint": self.words,
            "lineage": self.pretrained.lineage,
            "model": self.pretrained.spec.name,
            "tokenizer": tokenizer.fingerprint,
            "vocabulary": tokenizer.vocab_size,
            "context": self.context,
        }


def candidate(words: str, spec: EvaluateSpec, hardware: HardwareSpec) -> Candidate:
    """Open a checkpoint.

    Raises:
        RefusedError: there is none, its tokenizer is not the one that is given, it does not see as
            much as the context that is wanted or a question needs, or no text is known for it.
    """
    pretrained = open_source(words)
    _check_pairing(pretrained, spec.data.tokenizer.path)
    check_kernel(hardware.attention, pretrained.spec, hardware.compute_dtype)
    experiment = _experiment(pretrained)
    context = _context(pretrained, experiment, spec)
    how = asking(pretrained, spec.chat if spec.tasks or spec.lm_eval else "never")
    tasks = []
    for word in spec.tasks:
        task = question_set(word, limit=spec.limit, shots=shots_for(how, spec.shots))
        check_length(how, task, context, spec.max_new_tokens)
        tasks.append(task)
    text = text_plan(pretrained, experiment, spec.data) if spec.measures_text else None
    return Candidate(pretrained, context, how, tuple(tasks), text)


def read_texts(candidates: Sequence[Candidate], spec: EvaluateSpec) -> list[list[Corpus]]:
    """What each one is scored on, tokenised (cached); nothing where no text is wanted.

    Raises:
        RefusedError: a source cannot be read, or nothing of it is held out.
    """
    known: dict[tuple[TextPlan, str], list[Corpus]] = {}  # steps of one run have all in common
    found: list[list[Corpus]] = []
    for one in candidates:
        if one.text is None:
            found.append([])
            continue
        key = one.text, one.pretrained.tokenizer.fingerprint
        if key not in known:
            known[key] = read_corpora(
                one.text.sources,
                one.pretrained.tokenizer,
                split=spec.split,
                eval_fraction=one.text.eval_fraction,
                cache_dir=Path(spec.data.cache_dir).expanduser(),
                chat=one.text.chat,
            )
        found.append(known[key])
    return found


def _context(pretrained: Pretrained, experiment: ExperimentSpec | None, spec: EvaluateSpec) -> int:
    words, longest = pretrained.source, pretrained.spec.max_seq_len
    context = spec.context
    if context is None:
        # Beyond its run's, positions may be ones that it was never trained on.
        context = longest if experiment is None else min(longest, experiment.data.seq_len)
    if context > longest:
        raise RefusedError(f"context={context}: {words} sees {longest} tokens at most")
    if spec.stride is not None and spec.stride > context:
        raise RefusedError(f"stride={spec.stride}: longer than the context of {words}, {context}")
    return context


def _check_pairing(pretrained: Pretrained, path: str | None) -> None:
    words, tokenizer = pretrained.source, pretrained.tokenizer
    if tokenizer.vocab_size > pretrained.spec.vocab:
        raise RefusedError(
            f"checkpoint={words}: its tokenizer has {tokenizer.vocab_size} tokens, the model "
            f"only {pretrained.spec.vocab}: they do not belong together"
        )
    if path is not None and Tokenizer.load(path).fingerprint != tokenizer.fingerprint:
        raise RefusedError(
            f"data.tokenizer.path={path}: is another tokenizer than that of checkpoint={words}; a "
            "model can only be evaluated with its own (leave the word out to take that)"
        )


def _experiment(pretrained: Pretrained) -> ExperimentSpec | None:
    """The run's, which its checkpoints carry; None if it comes from elsewhere."""
    folder = pretrained.lineage.get("checkpoint")
    if folder is None:
        return None
    specs = read_checkpoint_meta(Path(folder)).get("experiment")
    experiment = None if specs is None else spec_from_json(specs)
    return experiment if isinstance(experiment, ExperimentSpec) else None
