"""What W&B's tables show of a metric: its last value, and its least, greatest or mean one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm.report.best import direction

_LARGEST = ("train/grad_norm", "perf/memory_gib", "policy/kl", "policy/sampler_logprob_gap")
_TYPICAL = ("perf/tokens_per_second", "perf/mfu", "perf/step_time", "perf/data_wait")


def aggregate_of(name: str) -> str | None:
    """min, max or mean; None where the last value says all."""
    sign = direction(name)
    if sign:
        return "min" if sign < 0 else "max"
    if name in _LARGEST:
        return "max"
    return "mean" if name in _TYPICAL else None


class Summary:
    """The aggregates of a whole run; W&B's own ones begin anew when a run is continued."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}  # least, greatest, sum, count, last

    def add(self, metrics: Mapping[str, float | None]) -> None:
        """Take in one event."""
        for name, value in metrics.items():
            if value is None or not math.isfinite(value) or aggregate_of(name) is None:
                continue
            least, greatest, total, count, _ = self._values.get(name, [value, value, 0.0, 0, 0.0])
            self._values[name] = [
                min(least, value), max(greatest, value), total + value, count + 1, value,
            ]  # fmt: skip

    def to_json(self) -> dict[str, dict[str, Any]]:
        """As W&B writes its own: {"train/loss": {"min": 1.0, "last": 1.5}, ...}."""
        found = {}
        for name, (least, greatest, total, count, last) in self._values.items():
            word = str(aggregate_of(name))
            value = {"min": least, "max": greatest, "mean": total / count}[word]
            found[name] = {word: value, "last": last}
        return found
