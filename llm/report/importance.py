"""Which swept fields mattered: the share of the objective's variance that each explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 3


@dataclass(frozen=True)
class Effect:
    """What changing one field did, the others being as they were.

    By the sum of the main effects of all fields, fitted to all points together: points need not be
    there for all combinations.
    """

    field: str
    share: float | None
    """Of the variance of all points, from 0 to 1: omega squared, which unlike eta squared does not
    grow with the number of values by chance alone (Hays 1963), of what the fit loses without this
    field. Noise is what the fit leaves over. None: too few points to tell, or always changed
    together with others."""
    means: dict[str, float]
    """What the fit says of all points if they all had this value (or were in this third of the
    values, if nearly all differ); where every combination is there, their mean."""


def effects(settings: Sequence[dict[str, str]], values: Sequence[float]) -> list[Effect]:
    """The effect of each field, the largest first.

    What two of them do only together is in no share.

    Args:
        settings: field to value, for each point; without the seed, whose effect is the noise.
        values: the objective of each point.
    """
    fields = list(dict.fromkeys(key for setting in settings for key in setting))
    y = np.asarray(values, np.float64)
    levels = {f: _levels([s.get(f, "") for s in settings]) for f in fields}
    levels = {field: values for field, values in levels.items() if len(set(values)) > 1}
    found = [_effect(field, levels, y) for field in levels]
    return sorted(found, key=lambda effect: -1.0 if effect.share is None else -effect.share)


def as_number(text: str) -> float | None:
    """A word's value as a number, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None


def in_order(values: Sequence[str]) -> list[str]:
    """Distinct values: numbers by size, else as they come."""
    distinct = list(dict.fromkeys(values))
    numbers = {value: as_number(value) for value in distinct}
    if None in numbers.values():
        return distinct
    return sorted(distinct, key=lambda value: numbers[value] or 0.0)


def _effect(field: str, levels: dict[str, list[str]], y: np.ndarray) -> Effect:
    others = [of_points for other, of_points in levels.items() if other != field]
    whole, without = _Fit([*others, levels[field]], y), _Fit(others, y)
    means = whole.means_of_last(in_order(levels[field]))
    total = float(((y - y.mean()) ** 2).sum())
    n = whole.rank - without.rank
    if not n or whole.free < 1 or not total:
        return Effect(field, None, means)
    noise = whole.left / whole.free
    share = (without.left - whole.left - n * noise) / (total + noise)
    return Effect(field, min(max(float(share), 0.0), 1.0), means)


class _Fit:
    """Least squares of a constant and a main effect of each factor."""

    def __init__(self, factors: Sequence[list[str]], y: np.ndarray) -> None:
        self._columns = [[np.ones(y.size)]]
        self._columns += [[_is(levels, one) for one in in_order(levels)] for levels in factors]
        design = self._design()
        self._solution, _, self.rank, _ = np.linalg.lstsq(design, y, rcond=None)
        self.free = y.size - self.rank
        """Points beyond those that the parameters need."""
        self.left = float(((y - design @ self._solution) ** 2).sum())
        """Sum of squares that is not explained."""

    def means_of_last(self, levels: Sequence[str]) -> dict[str, float]:
        """Mean of the fit over all points, if they all had one level of the last factor."""
        last = self._columns[-1]
        means = {}
        for place, level in enumerate(levels):
            self._columns[-1] = [np.full_like(c, i == place) for i, c in enumerate(last)]
            means[level] = float((self._design() @ self._solution).mean())
        self._columns[-1] = last
        return means

    def _design(self) -> np.ndarray:
        return np.stack([column for factor in self._columns for column in factor], axis=1)


def _is(levels: list[str], level: str) -> np.ndarray:
    return (np.array(levels) == level).astype(np.float64)


def _levels(values: list[str]) -> list[str]:
    """The values, or the thirds they lie in where nearly every point has one of its own."""
    numbers = [as_number(value) for value in values]
    if None in numbers or len(set(values)) <= max(len(values) / 2, _BINS):
        return values
    x = np.asarray(numbers, np.float64)
    edges = np.quantile(x, np.linspace(0, 1, _BINS + 1))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, _BINS - 1)
    return [f"{edges[i]:.3g} to {edges[i + 1]:.3g}" for i in place]
