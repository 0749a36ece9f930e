"""A run's ancestors in its report: one table, and their curves one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from llm.report.best import direction
from llm.report.history import History
from llm.report.json_files import read_json
from llm.report.markdown import duration, one_line, table
from llm.report.metrics_file import NAME
from llm.report.numbers import number, si
from llm.report.plots import DPI, INK, QUIET, WIDTH, dress, scale, smooth, thin_out

_COLOURS = ("#2563a8", "#d9600f", "#2a8a57", "#7a4fa3", "#b8860b")
_PANELS = (
    ("Loss, training", "train/loss"),
    ("Loss, held out", "eval/loss"),
    ("Answers equal to the data's, held out", "eval/exact_match"),
    ("Reward", "reward/mean"),
    ("Right answers, held out", "eval/accuracy"),
)
_RESULTS = ("eval/loss", "eval/bits_per_byte", "eval/exact_match", "reward/mean", "eval/accuracy")


@dataclass(frozen=True)
class Stage:
    """One run of a chain."""

    folder: Path
    run: dict[str, Any]
    result: dict[str, Any]
    until: int | None
    """The step from which the next stage took its weights; None for the last stage."""

    @cached_property
    def history(self) -> History:
        """Its metrics."""
        return History(self.folder / NAME)

    @property
    def trainer(self) -> str:
        """How it was trained."""
        specs = self.run.get("specs") or {}
        return str((specs.get("trainer") or {}).get("name") or self.run.get("title") or "run")

    @property
    def steps(self) -> int:
        """Done by the time the next stage took its weights."""
        return self.history.step if self.until is None else self.until

    @property
    def tokens(self) -> int:
        """Trained on by the time the next stage took its weights."""
        if self.until is None:
            return self.history.tokens
        at = self.history.curves("steps")
        tokens = self.history.curves("tokens")
        done = [
            float(t.at[s.at <= self.until].max())
            for s, t in zip(at, tokens, strict=True)
            if (s.at <= self.until).any()
        ]
        return int(max(done, default=0))


def ancestry(folder: Path) -> list[Stage]:
    """The run and those it descends from, the first of them first.

    The chain ends where a run began with random weights, with a model that is not ours, or with a
    run whose folder is gone.
    """
    stages: list[Stage] = []
    here: Path | None = folder
    until: int | None = None
    seen: set[Path] = set()
    while here is not None and here.resolve() not in seen and (here / "run.json").is_file():
        seen.add(here.resolve())
        stages.append(
            Stage(here, read_json(here / "run.json"), read_json(here / "result.json"), until)
        )
        parent = stages[-1].run.get("parent") or {}
        until = parent.get("step") if isinstance(parent.get("step"), int) else None
        here = Path(parent["run"]) if parent.get("run") else None
    return stages[::-1]


def lineage_section(folder: Path) -> str:
    """Table and picture of a run's ancestors as Markdown; empty if it has none.

    lineage.png is written into the folder.
    """
    stages = ancestry(folder)
    first = stages[0].run.get("parent") if stages else None
    if len(stages) < 2 and not first:
        return ""
    lines = [
        "## Lineage",
        "",
        table(list(_rows(stages)), ("", "", "tokens", "time", "result"), numbers=False),
    ]
    if len(stages) > 1 and draw_lineage(stages, folder / "lineage.png"):
        lines += ["", "![curves of all stages, one after the other](lineage.png)"]
    return "\n".join(lines)


def _rows(stages: list[Stage]) -> Iterator[tuple[str, ...]]:
    first = stages[0].run.get("parent")
    if isinstance(first, Mapping) and first:
        what = first.get("run") or first.get("source") or one_line(dict(first))
        yield "from", f"`{what}`", "", "", ""
    if size := _vocabulary(stages[0]):
        own = (stages[0].run.get("tokenizer") or {}).get("run")
        place = own or stages[0].folder / "tokenizer.json"
        yield "tokenizer", f"`{place}`", "", "", f"{size:,} tokens"
    for stage in stages:
        scores = stage.history.scores.last
        found = [f"{name} {number(scores[name])}" for name in _RESULTS if name in scores]
        step = "" if stage.until is None else f", taken at step {stage.until:,}"
        seconds = sum((stage.result.get("ledger") or {}).values())
        yield (
            stage.trainer,
            f"`{stage.folder}`{step}",
            si(stage.tokens),
            duration(seconds) if seconds else "-",
            ", ".join(found) or str(stage.result.get("status") or "running"),
        )


def _vocabulary(stage: Stage) -> int | None:
    model = read_json(stage.folder / "tokenizer.json").get("model") or {}
    vocabulary = model.get("vocab")
    return len(vocabulary) if isinstance(vocabulary, (dict, list)) else None


def draw_lineage(stages: list[Stage], path: Path) -> bool:
    """The curves of all stages side by side, equally wide: their tokens differ by far.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    panels = [
        (title, name, lines)
        for title, name in _PANELS
        if (lines := [(i, at, v) for i, s in enumerate(stages) for at, v in _line(s, name)])
    ]
    if not panels:
        return False
    figure = Figure(
        figsize=(WIDTH, 2.7 * len(panels) + 0.8), dpi=DPI,
        layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12),
    )  # fmt: skip
    FigureCanvasAgg(figure)
    names = " → ".join(stage.trainer for stage in stages)
    figure.suptitle(names, x=0.02, ha="left", fontsize=14, fontweight="bold", color=INK)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, (title, name, lines) in zip(grid[:, 0], panels, strict=True):
        dress(axes, title)
        for i, at, values in lines:
            smoothed = smooth(values) if values.size >= 20 and name.startswith("train/") else values
            axes.plot(
                *thin_out(i + at, smoothed), color=_COLOURS[i % len(_COLOURS)],
                linewidth=1.9, marker="o" if values.size <= 30 else "", markersize=4,
            )  # fmt: skip
        scale(
            axes,
            np.concatenate([v for _, _, v in lines]),
            from_zero=False,
            linear=direction(name) > 0,
            tall=True,
        )
        for border in range(1, len(stages)):
            axes.axvline(border, color=QUIET, linewidth=0.9, linestyle=(0, (4, 4)))
    grid[-1, 0].set_xlim(0, len(stages))
    grid[-1, 0].set_xticks([i + 0.5 for i in range(len(stages))], [_amount(s) for s in stages])
    grid[-1, 0].tick_params(axis="x", length=0, labelsize=10.5)
    figure.savefig(path, format="png")
    return True


def _amount(stage: Stage) -> str:
    tokens = f", {si(stage.tokens)} tokens" if stage.tokens else ""
    return f"{stage.trainer}\n{stage.steps:,} steps{tokens}"


def _line(stage: Stage, name: str) -> Iterator[tuple[Any, Any]]:
    """The curve as far as the next stage inherited it, its end at 1.

    A policy's loss says nothing to people.
    """
    if name.startswith("train/") and stage.history.has_rewards:
        return
    curve = stage.history.curve(name, "steps")
    if curve is not None:
        at, values = curve.finite.at, curve.finite.values
        good = at <= stage.steps
        if good.any():
            yield at[good] / max(stage.steps, 1), values[good]
