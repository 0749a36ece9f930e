"""How sure a number is: 95 % confidence intervals.

Shares of right answers have Wilson's interval (1927), which stays within 0 and 1 and holds for few
questions too. Everything that is a mean over parts of unequal size (the loss over documents) or a
mean of several means (a suite) has the percentile bootstrap's (Efron 1979): what the middle 95 % of
1,000 redraws of the documents or questions give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054
_REDRAWS = 1000


class Interval(NamedTuple):
    """Both ends."""

    low: float
    high: float


def wilson(right: float, n: int) -> Interval:
    """Of a share of `right` in `n` independent questions.

    Raises:
        ValueError: there is no question, or there are fewer than right answers.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} right of {n}")
    p, spread = right / n, _Z**2 / n
    middle = p + spread / 2
    reach = _Z * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    low, high = ((middle + sign * reach) / (1 + spread) for sign in (-1, 1))
    # Exact at the ends, where rounding would leave 1e-17.
    return Interval(0.0 if right == 0 else low, 1.0 if right == n else high)


def bootstrap(
    strata: Sequence[np.ndarray], statistic: Callable[[Sequence[np.ndarray]], float]
) -> Interval | None:
    """Of any number made from sums over independent parts.

    Args:
        strata: arrays [N, K], K numbers for each of N parts; redrawn each for itself.
        statistic: from the K means of each stratum to the number.

    Returns:
        None if a stratum has a single part: nothing is known then.
    """
    if any(len(parts) < 2 for parts in strata):
        return None
    rng = np.random.default_rng(0)
    values = []
    for _ in range(_REDRAWS):
        means = []
        for parts in strata:
            n = len(parts)
            times = np.bincount(rng.integers(0, n, n), minlength=n)
            means.append(times @ parts / n)
        values.append(statistic(means))
    return Interval(*np.quantile(values, [0.025, 0.975]).tolist())
