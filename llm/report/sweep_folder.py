"""A sweep as its folder tells it, in whatever state it is: points, how they ended, what they gave.

`sweep.json` names what was planned. Without it, or where a sweeper planned as it went, the folders
of the runs are all there is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llm.report.history import History
from llm.report.json_files import read_json
from llm.report.metrics_file import NAME
from llm.report.objective import BITS_PER_BYTE, Objective
from llm.report.plots import Curve

RECORD = "sweep.json"
SEED = "seed"
_QUIET_AFTER = 600  # seconds without an event after which a run is taken to be dead


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    folder: Path | None
    """None if it has not begun."""
    words: dict[str, str]
    """The swept keys with their values, as on the command line."""
    status: str
    """finished, stopped, failed, killed (ended without a word), running or waiting."""
    result: dict[str, Any]
    run: dict[str, Any]

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """What the point is besides its seed."""
        return tuple((key, value) for key, value in self.words.items() if key != SEED)

    @property
    def seed(self) -> str:
        """What tells it from others of its setting."""
        of_run = (self.run.get("specs") or {}).get(SEED, self.folder)
        return self.words.get(SEED, str(of_run))

    @property
    def error(self) -> str | None:
        """Why it failed, in one line."""
        error = self.result.get("error")
        if isinstance(error, Mapping):
            message = " ".join(str(error.get("message", "")).split())
            return f"{error.get('type', 'Error')}: {message}"
        return (
            "ended without a word (killed, or out of memory)" if self.status == "killed" else None
        )

    @cached_property
    def history(self) -> History:
        """Its metrics."""
        return History((self.folder or Path("/nonexistent")) / NAME)

    @property
    def seconds(self) -> float:
        """Wall time of its last part."""
        return float(sum((self.result.get("ledger") or {}).values()))

    @property
    def tokenizer(self) -> str | None:
        """Fingerprint of its tokenizer; None if it is not known."""
        tokenizer = self.run.get("tokenizer")
        return tokenizer.get("fingerprint") if isinstance(tokenizer, Mapping) else None

    @cached_property
    def bytes_per_token(self) -> float | None:
        """Of the text that it is trained on, by the weights of the sources; None if not known."""
        sources = (self.run.get("data") or {}).get("sources") or ()
        try:
            shares = [(one["weight"], one["bytes"] / one["tokens"]) for one in sources]
            return sum(w * size for w, size in shares) / sum(w for w, _ in shares)
        except (KeyError, ZeroDivisionError):
            return None

    def curve(self, name: str, unit: str) -> Curve | None:
        """One metric against `steps`, `tokens` or `bytes` of text; None if it was never logged."""
        if unit != "bytes":
            return self.history.curve(name, unit)
        curve = self.history.curve(name)
        return curve and replace(curve, at=curve.at * (self.bytes_per_token or math.nan))

    def done(self, unit: str) -> float:
        """How far it came, in `steps`, `tokens` or `bytes` of text."""
        if unit == "bytes":
            return self.history.tokens * (self.bytes_per_token or math.nan)
        return float(self.history.tokens if unit == "tokens" else self.history.step)

    def value(
        self, objective: Objective, amount: float = math.inf, unit: str = "tokens"
    ) -> float | None:
        """The objective after so much training, if need be between two measurements."""
        curve = self.curve(objective.metric, unit)
        if curve is None or not curve.finite.values.size:
            return None
        at, values = curve.finite.at, curve.finite.values
        if at[0] > amount:
            return None
        if objective.best:
            until = values[at <= amount]
            return float(until.min() if objective.sign < 0 else until.max())
        return float(np.interp(amount, at, values))


@dataclass(frozen=True)
class Setting:
    """Points that differ in their seed only."""

    words: tuple[tuple[str, str], ...]
    points: list[Point]
    values: list[float]
    """The objective of each point, after equal amounts of training."""
    planned: int
    """Seeds of the setting in the sweep, whatever became of them."""
    failed: int
    """Seeds that ended without a value, so that the mean is of those that survived."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder, read."""

    folder: Path
    objective: Objective
    swept: list[str]
    points: list[Point]
    record: dict[str, Any]

    @property
    def fields(self) -> list[str]:
        """The swept keys besides the seed."""
        return [key for key in self.swept if key != SEED]

    @property
    def tokenizers_differ(self) -> bool:
        """Not all runs have the same one, so that a token of one is not a token of another."""
        return len({point.tokenizer for point in self.points} - {None}) > 1

    def with_status(self, *statuses: str) -> list[Point]:
        """Points that ended so."""
        return [point for point in self.points if point.status in statuses]

    @cached_property
    def compared(self) -> list[Point]:
        """The points that are compared: those that finished, or if none has, all that began."""
        finished = self.with_status("finished") or self.with_status("running", "stopped", "killed")
        return [point for point in finished if point.value(self.objective) is not None]

    @cached_property
    def unit(self) -> str:
        """What training is measured in: `tokens`, or where tokenizers differ `bytes` of text.

        Of a policy's tokens only some count, so `steps` there.
        """
        if any(point.history.has_rewards for point in self.compared):
            return "steps"
        known = all(point.bytes_per_token for point in self.compared)
        return "bytes" if self.tokenizers_differ and known else "tokens"

    @cached_property
    def amount(self) -> float:
        """After so much of the `unit` points are compared: what all of them have done."""
        return min((point.done(self.unit) for point in self.compared), default=0.0)

    def value(self, point: Point) -> float | None:
        """What a point is compared by."""
        return point.value(self.objective, self.amount, self.unit)

    @property
    def even(self) -> bool:
        """All points that are compared did as much."""
        most = max((point.done(self.unit) for point in self.compared), default=0.0)
        return most <= self.amount * 1.01

    @cached_property
    def ranked(self) -> list[Setting]:
        """Settings with the values of their points, the best first.

        Those with a failed seed come after all others: the mean of the seeds that survived says
        nothing about those that did not.
        """
        settings: dict[tuple[tuple[str, str], ...], list[Point]] = {}
        for point in self.compared:
            settings.setdefault(point.setting, []).append(point)
        found = []
        for words, points in settings.items():
            values = {
                # The same setting and seed twice is one measurement, not two.
                point.seed: value
                for point in points
                if (value := self.value(point)) is not None
            }
            if values:
                of_setting = [point for point in self.points if point.setting == words]
                over = {p.seed for p in of_setting if p.status in ("finished", "failed", "killed")}
                planned = len({point.seed for point in of_setting})
                failed = len(over - values.keys())
                found.append(Setting(words, points, list(values.values()), planned, failed))
        sign = -(self.objective.sign or -1)
        return sorted(found, key=lambda setting: (setting.failed > 0, sign * setting.mean))

    @property
    def unmeasured(self) -> dict[tuple[tuple[str, str], ...], str]:
        """Settings of which no point has a value, and what became of their points, in words."""
        measured = {setting.words for setting in self.ranked}
        found: dict[tuple[tuple[str, str], ...], dict[str, None]] = {}
        for point in self.points:
            if point.setting not in measured:
                found.setdefault(point.setting, {})[point.status] = None
        return {words: ", ".join(statuses) for words, statuses in found.items()}

    def short(self, key: str) -> str:
        """A key without its groups, if that leaves no doubt: lr for trainer.optimizer.lr."""
        last = key.replace("/", ".").rpartition(".")[2]
        same = [k for k in self.swept if k.replace("/", ".").rpartition(".")[2] == last]
        return last if len(same) == 1 else key

    def label(self, words: tuple[tuple[str, str], ...]) -> str:
        """A setting in few words."""
        return ", ".join(f"{self.short(k)}={brief(v)}" for k, v in words) or "all"


def brief(value: str) -> str:
    """A word's value for people: of a number that a sweeper drew, four digits."""
    with suppress(ValueError):
        if len(value) > 8:
            return f"{float(value):.4g}"
    return value


def is_sweep(folder: Path) -> bool:
    """Whether this is the folder of a sweep and not of a run."""
    if (folder / RECORD).is_file():
        return True
    return not (folder / "run.json").is_file() and any(_run_folders(folder))


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder.

    Args:
        folder: what was its `hydra.sweep.dir`.
    """
    record = read_json(folder / RECORD)
    runs = [_Found(path) for path in sorted(_run_folders(folder), key=_number)]
    swept = [str(key) for key in record["swept"]] if "swept" in record else _differing(runs)
    over = bool(record.get("ended"))
    points = [run.point(swept, over) for run in runs]
    for planned in record.get("points") or ():
        if all(point.words != planned for point in points):
            points.append(Point(None, dict(planned), "waiting", {}, {}))
    if record.get("points"):
        order = {tuple(words.items()): i for i, words in enumerate(record["points"])}
        points.sort(key=lambda point: order.get(tuple(point.words.items()), len(order)))
    words = record.get("objective") or next(
        (run.run["objective"] for run in runs if run.run.get("objective")), "eval/loss"
    )
    sweep = Sweep(folder, Objective.named(str(words)), swept, points, record)
    if sweep.tokenizers_differ and sweep.objective.per_token and _can_be_in_bytes(points):
        return replace(sweep, objective=Objective(BITS_PER_BYTE))
    return sweep


def _can_be_in_bytes(points: list[Point]) -> bool:
    """Nobody named an objective, and all that was measured was measured in bits per byte too."""
    if any((point.run.get("specs") or {}).get("objective") for point in points):
        return False
    measured = [last for p in points if "eval/loss" in (last := p.history.scores.last)]
    return bool(measured) and all(BITS_PER_BYTE in last for last in measured)


def read_run(folder: Path) -> Point:
    """Read a run's folder as if it were a point of a sweep."""
    return _Found(folder).point([], over=False)


class _Found:
    """A run's folder, and the words that it was begun with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run, self.result = read_json(folder / "run.json"), read_json(folder / "result.json")
        words = self.run.get("overrides") or self.result.get("overrides") or ()
        self.words = dict(str(word).split("=", 1) for word in words if "=" in str(word))

    def point(self, swept: list[str], over: bool) -> Point:
        words = {key: self.words[key] for key in swept if key in self.words}
        return Point(self.folder, words, self._status(over), self.result, self.run)

    def _status(self, over: bool) -> str:
        status = str(self.result.get("status") or "")
        if status:
            return status
        if over or time.time() - self._last_sign() > _QUIET_AFTER:
            return "killed"
        return "running"

    def _last_sign(self) -> float:
        files = [self.folder / name for name in (NAME, "run.log", "run.json")]
        return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _run_folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for path in folder.iterdir():
            if any((path / name).is_file() for name in ("run.json", "result.json")):
                yield path


def _number(folder: Path) -> tuple[float, str]:
    number = folder.name.partition("-")[0]
    return (float(number) if number.isdecimal() else math.inf), folder.name


def _differing(runs: list[_Found]) -> list[str]:
    """Keys of words whose values are not the same in all runs."""
    keys = list(dict.fromkeys(key for run in runs for key in run.words))
    return [key for key in keys if len({run.words.get(key) for run in runs}) > 1]
