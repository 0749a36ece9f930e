"""Last and best value of every metric: what result.json and the closing panel show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LOWER_IS_BETTER = ("/loss", "/bits_per_byte", "/perplexity")
_HIGHER_IS_BETTER = ("reward/mean", "/accuracy", "/exact_match", "eval/reward")
_NOT_METRICS = ("step", "tokens", "time")


def direction(name: str) -> int:
    """-1 if a lower value of this metric is better, 1 if a higher one is, 0 if neither."""
    if name.endswith(_LOWER_IS_BETTER) and not name.startswith(("policy/", "train/aux")):
        return -1
    if name.endswith(_HIGHER_IS_BETTER) or name.startswith("eval/pass_at_"):
        return 1
    return 0


class Scores:
    """Folds events into the last value of each metric and the best of those that have one."""

    def __init__(self) -> None:
        self.last: dict[str, float | None] = {}
        self.best: dict[str, dict[str, Any]] = {}

    def add(self, step: int, metrics: Mapping[str, float | None]) -> list[str]:
        """Take in one event.

        Args:
            step: the step of the event.
            metrics: name to value; None and values that are not finite are never the best.

        Returns:
            The names that reached a new best.
        """
        improved = []
        of_policy = "policy/ratio" in metrics  # a loss that is neither better nor worse when lower
        for name, value in metrics.items():
            if name in _NOT_METRICS:
                continue
            self.last[name] = value
            sign = 0 if of_policy and name == "train/loss" else direction(name)
            if not sign or value is None or not math.isfinite(value):
                continue
            if name not in self.best or sign * value > sign * self.best[name]["value"]:
                self.best[name] = {"value": value, "step": step}
                improved.append(name)
        return improved
