"""From right and wrong answers to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm.eval.intervals import bootstrap, wilson
from llm.report.pass_at_k import ks, pass_at_k


def accuracy(right: Sequence[float], chance: float = 0.0) -> dict[str, Any]:
    """Share of right answers with Wilson's interval; 1/n stands for a tie of n best choices."""
    return {
        "accuracy": float(np.mean(right)),
        "accuracy_95": wilson(float(np.sum(right)), len(right)),
        "chance": chance,
        "questions": len(right),
    }


def pass_at(right: Sequence[int], n: int) -> dict[str, Any]:
    """pass@k for k = 1, 2, 4, ... up to `n`, means over questions with bootstrapped intervals.

    Args:
        right: how many of the `n` answers to each question are right.
        n: answers to each.
    """
    found = {}
    for k in ks(n):
        values = np.array([[pass_at_k(n, c, k)] for c in right])
        # Redraws of equal values say nothing about how sure they are.
        interval = bootstrap([values], lambda means: means[0][0]) if np.ptp(values) else None
        found[str(k)] = {"value": float(values.mean()), "interval_95": interval}
    return found


def centred_score(
    tasks: Mapping[str, Sequence[float]], chances: Mapping[str, float]
) -> dict[str, Any]:
    """Mean over tasks of (accuracy - chance) / (1 - chance): 0 is guessing, 1 all right."""
    names = list(tasks)

    def score(means: Sequence[np.ndarray]) -> float:
        parts = [
            (float(mean[0]) - chances[name]) / (1 - chances[name])
            for name, mean in zip(names, means, strict=True)
        ]
        return sum(parts) / len(parts)

    strata = [np.array(tasks[name], np.float64)[:, None] for name in names]
    return {
        "score": score([stratum.mean(axis=0) for stratum in strata]),
        "score_95": bootstrap(strata, score),
    }
