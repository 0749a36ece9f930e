"""The points of a sweep, from its words, before any of them runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig


@dataclass(frozen=True)
class Points:
    """What a sweep will run."""

    words: list[list[str]]
    """Of each point; of a sweeper that proposes as it goes, the ends of its ranges."""
    swept: list[str]
    """The keys that differ between points."""
    complete: bool
    """These are all there will be, in this order."""


def points_of(config: DictConfig) -> Points:
    """The points that the configured sweeper will run, or as much as can be known of them.

    A grid is known. Optuna and its like propose a point when the ones before are done; of their
    ranges both ends, and of their choices each, are taken one key at a time, the others at their
    first value.

    Raises:
        HydraException: the words cannot be parsed, or the sweeper does not take such a range.
    """
    sweeper = config.hydra.sweeper
    given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    given += [str(word) for word in config.hydra.overrides.task]
    words = OverridesParser.create().parse_overrides(given)
    swept = list(dict.fromkeys(w.get_key_element() for w in words if w.is_sweep_override()))
    if str(sweeper._target_).endswith(".BasicSweeper"):
        batches = BasicSweeper.split_arguments(words, None)
        return Points([list(point) for batch in batches for point in batch], swept, complete=True)
    return Points(list(_ends(words)), swept, complete=False)


def value_of(words: Iterable[str], key: str) -> str:
    """The value that the last of the words for this key gives it."""
    return [word.split("=", 1)[1] for word in words if word.startswith(f"{key}=")][-1]


def _ends(words: list[Override]) -> Iterable[list[str]]:
    values = {word.get_key_element(): _some_values(word) for word in words}
    first = {key: some[0] for key, some in values.items()}
    yield [f"{key}={value}" for key, value in first.items()]
    for key, some in values.items():
        for value in some[1:]:
            yield [f"{k}={v}" for k, v in (first | {key: value}).items()]


def _some_values(word: Override) -> list[str]:
    value = word.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    if word.is_sweep_override():
        return list(word.sweep_string_iterator())
    return [word.get_value_element_as_str()]
