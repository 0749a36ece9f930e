"""The one number by which runs are compared: a metric's last value, or its best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm.report.best import direction

BITS_PER_BYTE = "eval/bits_per_byte"
"""What can be compared between tokenizers."""

_BEST = "best:"


@dataclass(frozen=True)
class Objective:
    """What a sweep looks for, as words: `eval/loss`, or `best:eval/loss`."""

    metric: str
    best: bool = False

    @classmethod
    def named(cls, words: str) -> Objective:
        """From its words."""
        return cls(words.removeprefix(_BEST), words.startswith(_BEST))

    def __str__(self) -> str:
        return _BEST + self.metric if self.best else self.metric

    @property
    def sign(self) -> int:
        """-1 if lower values are better, 1 if higher ones are, 0 if that is a matter of taste."""
        return direction(self.metric)

    @property
    def per_token(self) -> bool:
        """A mean over tokens, which cannot be compared between tokenizers."""
        return self.metric.endswith(("/loss", "/perplexity"))

    def of(self, result: Mapping[str, Any]) -> float | None:
        """The value in a run's result.json; None if it has none."""
        if self.best:
            found = (result.get("best") or {}).get(self.metric)
            value = found.get("value") if isinstance(found, Mapping) else None
        else:
            value = (result.get("final") or {}).get(self.metric)
        return float(value) if isinstance(value, (int, float)) else None
