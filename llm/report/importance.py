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
    grow with the number of values by chance alone (Hays 1963). Noise is what the main effects of
    all fields together leave over. None: too few points to tell."""
    means: dict[str, float]
    """Mean of the points with each value (or third of the values, if nearly all differ)."""


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
    noise = _noise(list(levels.values()), y)
    found = [_effect(field, of_points, y, noise) for field, of_points in levels.items()]
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


def _effect(field: str, levels: list[str], y: np.ndarray, noise: float | None) -> Effect:
    groups = {level: y[np.array(levels) == level] for level in in_order(levels)}
    means = {level: float(group.mean()) for level, group in groups.items()}
    total = float(((y - y.mean()) ** 2).sum())
    if noise is None or not total:
        return Effect(field, None, means)
    between = sum(group.size * (group.mean() - y.mean()) ** 2 for group in groups.values())
    share = (between - (len(groups) - 1) * noise) / (total + noise)
    return Effect(field, max(float(share), 0.0), means)


def _noise(factors: Sequence[list[str]], y: np.ndarray) -> float | None:
    """Mean square of what all fields together, added up, leave unexplained.

    None if as many parameters as there are points, or more, would be fitted.
    """
    columns = [np.ones(y.size)]
    for levels in factors:
        of_point = np.array(levels)
        columns += [(of_point == level).astype(np.float64) for level in dict.fromkeys(levels)]
    free = y.size - 1 - sum(len(set(levels)) - 1 for levels in factors)
    if free < 1:
        return None
    design = np.stack(columns, axis=1)
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(((y - fitted) ** 2).sum()) / free


def _levels(values: list[str]) -> list[str]:
    """The values, or the thirds they lie in where nearly every point has one of its own."""
    numbers = [as_number(value) for value in values]
    if None in numbers or len(set(values)) <= max(len(values) / 2, _BINS):
        return values
    x = np.asarray(numbers, np.float64)
    edges = np.quantile(x, np.linspace(0, 1, _BINS + 1))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, _BINS - 1)
    return [f"{edges[i]:.3g} to {edges[i + 1]:.3g}" for i in place]
