"""What launch/evaluate.py is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.core.hardware import DTYPES, HardwareSpec
from llm.core.spec import RefusedError, Spec, knob
from llm.data.specs import LOSS_ON, SOURCES, DocumentsSpec
from llm.generate.specs import Sampling
from llm.report.specs import TrackerSpec

SPLITS = ("held_out", "train", "all")
SUITES = ("core",)
PER_TOKEN = (".parquet", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class ExpectedTokenizerSpec(Spec):
    """The tokenizer that the checkpoints should have; theirs is used in any case."""

    path: str | None = knob(
        None, "tokenizer.json, a folder with one, or hf:org/name; any other is refused"
    )


@dataclass(frozen=True, kw_only=True)
class TextSpec(DocumentsSpec):
    """The text whose loss is measured."""

    source: str = knob(
        "auto",
        "kind of source; auto: the text that the checkpoint was trained on, if nothing else is "
        "asked for",
        choices=("auto", *SOURCES),
    )
    eval_fraction: float | None = knob(
        None, "share of the documents that is held out; null: as in the run, or 0.005",
        gt=0, lt=1,
    )  # fmt: skip
    loss_on: str = knob(
        "text",
        "text: plain documents; others: conversations in the checkpoint's chat template, and "
        "which parts of them count",
        choices=("text", *LOSS_ON),
    )
    ends: bool = knob(True, "of plain documents the token that ends one counts too")
    tokenizer: ExpectedTokenizerSpec = knob(ExpectedTokenizerSpec(), "expected tokenizer")
    cache_dir: str = knob("outputs/cache", "folder for tokenised documents")

    def check(self) -> None:  # noqa: D102
        if self.source != "auto":
            super().check()
            return
        plain = TextSpec.__dataclass_fields__
        for name in (*DocumentsSpec.__dataclass_fields__, "eval_fraction", "loss_on"):
            if (value := getattr(self, name)) != plain[name].default:
                raise RefusedError(f"{name}={value}: is read with a source; give source too")


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec(Sampling):
    """One call of launch/evaluate.py."""

    checkpoint: str | Sequence[str] = knob(
        "last", "model: a run folder, last:TRAINER, hf:org/name, gguf:FILE, ...; several in a list"
    )
    data: TextSpec = knob(TextSpec(), "text whose loss is measured")
    split: str = knob(
        "held_out", "documents: those that a run holds out, those it trains on, or all",
        choices=SPLITS,
    )  # fmt: skip
    context: int | None = knob(
        None, "tokens the model is given at once; null: as in its run, else as many as it sees",
        ge=2,
    )  # fmt: skip
    stride: int | None = knob(
        None, "tokens between windows of a long document; null: context, no overlap", ge=1
    )
    per_token: str | None = knob(
        None, "new .parquet or .jsonl file for the log-probability of every token"
    )
    tasks: Sequence[str] = knob(
        [], "kinds of generated questions (addition, ...), choices:KIND, or .jsonl files"
    )
    suite: str | None = knob(
        None, "core: one score from small tasks that any language model can do", choices=SUITES
    )
    lm_eval: Sequence[str] = knob(
        [], "tasks of lm-evaluation-harness: names, .yaml files or folders of them"
    )
    limit: int | None = knob(
        None, "documents of each text and questions of each task at most; null: all, and 100 of "
        "generated ones", gt=0,
    )  # fmt: skip
    chat: str = knob(
        "auto", "ask in the chat template; auto: if the checkpoint has one",
        choices=("auto", "always", "never"),
    )  # fmt: skip
    shots: int | None = knob(
        None, "answered examples before a question; null: 0 in a chat template, else 3", ge=0
    )
    samples: int = knob(0, "answers drawn to each question, for pass@k", ge=0)
    max_new_tokens: int = knob(64, "tokens per answer at most", gt=0)
    batch_size: int = knob(32, "answers that are written at a time", gt=0)
    batch_tokens: int = knob(
        4096, "tokens that are scored at a time; on a GPU more may be faster", gt=0
    )
    seed: int = knob(0, "all randomness follows from it", ge=0, lt=2**63)
    dtype: str = knob("float32", "type in which the weights are kept", choices=DTYPES)
    hardware: HardwareSpec = knob(HardwareSpec(), "hardware profile")
    tracker: TrackerSpec = knob(TrackerSpec(), "Weights & Biases")

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Each of them."""
        one = self.checkpoint
        return (one,) if isinstance(one, str) else tuple(one)

    @property
    def measures_text(self) -> bool:
        """A text is named, or nothing else is asked for."""
        asked = self.tasks or self.suite or self.lm_eval
        return self.data.source != "auto" or self.per_token is not None or not asked

    def check(self) -> None:  # noqa: D102
        if not self.checkpoints or len(set(self.checkpoints)) < len(self.checkpoints):
            raise RefusedError(
                f"checkpoint={list(self.checkpoints)}: expected one or more, each once"
            )
        if self.stride and self.context and self.stride > self.context:
            raise RefusedError(
                f"stride={self.stride}: longer than context={self.context}, so tokens between two "
                "windows would not be scored"
            )
        if self.per_token is not None and Path(self.per_token).suffix not in PER_TOKEN:
            raise RefusedError(
                f"per_token={self.per_token}: expected a name that ends in {' or '.join(PER_TOKEN)}"
            )
        for name in ("tasks", "lm_eval"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise RefusedError(f"{name}={list(getattr(self, name))}: each once")
        if not self.measures_text:
            self._refuse(("stride", "split"), "a text; give data.source=... too")
        if not self.tasks:
            written = (*Sampling.__dataclass_fields__, "samples")
            self._refuse(written, "tasks; give tasks=[...] too")
        if not self.tasks and not self.lm_eval:
            words = "tasks; give tasks=[...] or lm_eval=[...] too"
            self._refuse(("chat", "shots", "batch_size"), words)

    def _refuse(self, names: Sequence[str], needed: str) -> None:
        """Words that nothing which is asked for would read."""
        for name in names:
            if (value := getattr(self, name)) != EvaluateSpec.__dataclass_fields__[name].default:
                raise RefusedError(f"{name}={value}: is read with {needed}")
