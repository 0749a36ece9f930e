"""metrics.jsonl by column."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm.report.best import Scores
from llm.report.metrics_file import read_metrics
from llm.report.plots import Curve


class History:
    """Every metric of a metrics file with where it was measured, and its first, last and best."""

    def __init__(self, path: Path):
        """Read a metrics.jsonl; a missing one has no events."""
        self.scores = Scores()
        self.first: dict[str, float] = {}
        self.events = 0
        self.step, self.tokens, self.time = 0, 0, math.nan
        self._columns: dict[str, tuple[list[tuple[int, int]], list[float]]] = {}
        for event in read_metrics(path):
            self._add(event)

    def _add(self, event: Mapping[str, Any]) -> None:
        self.events += 1
        self.step, self.tokens = event["step"], event.get("tokens") or 0
        self.time = event.get("time") or self.time
        metrics = {
            name: value
            for name, value in event.items()
            if "/" in name and (value is None or isinstance(value, (int, float)))
        }
        self.scores.add(self.step, metrics)
        for name, value in metrics.items():
            at, values = self._columns.setdefault(name, ([], []))
            at.append((self.step, self.tokens))
            values.append(math.nan if value is None else value)
            if value is not None:
                self.first.setdefault(name, value)

    @property
    def has_rewards(self) -> bool:
        """Whether this is of reinforcement learning."""
        return "reward/mean" in self._columns

    def curves(self, unit: str) -> list[Curve]:
        """Every metric against `steps` or `tokens`."""
        which = ("steps", "tokens").index(unit)
        return [
            Curve(name, np.asarray(at, np.float64)[:, which], np.asarray(values, np.float64))
            for name, (at, values) in self._columns.items()
        ]

    def curve(self, name: str, unit: str = "tokens") -> Curve | None:
        """One metric; None if it was never logged."""
        return next((curve for curve in self.curves(unit) if curve.name == name), None)

    def median(self, name: str) -> float | None:
        """Median of a metric, or None; for rates, which start-up and pauses distort."""
        values = np.asarray(self._columns.get(name, ([], []))[1], np.float64)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if values.size else None
