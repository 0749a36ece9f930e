"""A pretrained model as every source gives it, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from llm.data.tokenizer import Tokenizer
from llm.models.specs import ModelSpec


class Tensors(Protocol):
    """A file of named arrays, under the names that Hugging Face's models use.

    Reading one does not read the others, so that a model can be larger than what is free besides.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""

    def read(self, name: str) -> np.ndarray:
        """One tensor in the type it is stored in (bfloat16 through ml_dtypes), or dequantised."""


@dataclass(frozen=True)
class Pretrained:
    """Everything but the weights, and a way to read those."""

    source: str
    """The words that led here, such as `hf:org/name`; of `last`, the checkpoint that it was."""
    spec: ModelSpec
    tokenizer: Tokenizer
    weights: Callable[[Any], Any]
    """From a nested dict of `jax.ShapeDtypeStruct` with shardings, shaped like the model's
    parameters, to arrays of those types in those places. Reads one tensor after the other."""
    chat_template: str | None = None
    """Jinja source, if the model was trained on conversations."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that its files say end an answer; may be none."""
    sampling: dict[str, float] = field(default_factory=dict)
    """How its files say that tokens are to be drawn, under transformers' names."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """Where it comes from, as JSON: files, checksums, revision, licence, parents."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end what the model says, the most usual one first."""
        return self.stop_ids or (self.tokenizer.separator_id,)
