"""Which swept fields mattered: the share of the objective's variance that each explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 3


@dataclass(frozen=True)
class Effect:
    """What changing one field did, the others being as they were."""

    field: str
    share: float | None
    """Of the variance of all points, from 0 to 1: omega squared, which unlike eta squared does not
    grow with the number of values by chance alone (Hays 1963). None: too few points to tell."""
    means: dict[str, float]
    """Mean of the points with each value (or third of the values, if nearly all differ)."""


def effects(settings: Sequence[dict[str, str]], values: Sequence[float]) -> list[Effect]:
    """The effect of each field, the largest first.

    Each field is looked at by itself: what two of them do only together is in no share.

    Args:
        settings: field to value, for each point.
        values: the objective of each point.
    """
    fields = list(dict.fromkeys(key for setting in settings for key in setting))
    y = np.asarray(values, np.float64)
    found = [_effect(f, _levels([s.get(f, "") for s in settings]), y) for f in fields]
    found = [effect for effect in found if len(effect.means) > 1]
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


def _effect(field: str, levels: list[str], y: np.ndarray) -> Effect:
    groups = {level: y[np.array(levels) == level] for level in in_order(levels)}
    means = {level: float(group.mean()) for level, group in groups.items()}
    n, k = y.size, len(groups)
    total = float(((y - y.mean()) ** 2).sum())
    if n - k < 2 or not total:
        return Effect(field, None, means)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups.values())
    noise = within / (n - k)
    share = (total - within - (k - 1) * noise) / (total + noise)
    return Effect(field, max(share, 0.0), means)


def _levels(values: list[str]) -> list[str]:
    """The values, or the thirds they lie in where nearly every point has one of its own."""
    numbers = [as_number(value) for value in values]
    if None in numbers or len(set(values)) <= max(len(values) / 2, _BINS):
        return values
    x = np.asarray(numbers, np.float64)
    edges = np.quantile(x, np.linspace(0, 1, _BINS + 1))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, _BINS - 1)
    return [f"{edges[i]:.3g} to {edges[i + 1]:.3g}" for i in place]
