"""A tokenizer to train and to compare, as one call of launch/tokenizer.py has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm.core.spec import RefusedError, knob
from llm.data.specs import BPESpec, DataSpec, TokenizerSpec


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainingSpec(BPESpec):
    """One call of launch/tokenizer.py."""

    name: str = knob("tokenizer", "name of the run's folder")
    data: DataSpec = knob(doc="data, in the words of the run that will use the tokenizer")
    characters: int | None = knob(
        None, "train on about so many, spread evenly; null: on everything", ge=1
    )
    compare: Sequence[str] = knob(
        [],
        "tokenizers to set beside it: tokenizer.json, .model, folders, runs, hf:org/name, "
        "gguf:FILE, last, ...",
    )

    def check(self) -> None:  # noqa: D102
        super().check()
        if self.data.tokenizer != TokenizerSpec():
            raise RefusedError(
                "data.tokenizer: says which tokenizer a run takes; what to train is said without "
                "it, as in vocab_size=8192"
            )
        if not self.data.eval_fraction:
            raise RefusedError(
                "data.eval_fraction=0: expected more than 0, as the tokenizer is measured on text "
                "that it has not seen"
            )
        if not self.name.strip() or "/" in self.name:
            raise RefusedError(
                f"name={self.name}: becomes part of a folder's name; not empty, no /"
            )
