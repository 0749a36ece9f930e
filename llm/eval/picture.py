"""evaluation.png: bits per byte and shares of right answers, a colour for each checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llm.report.numbers import number

_COLOURS = ("#2563a8", "#d9600f", "#2a8a57", "#7a4fa3", "#c9a227", "#c0262d", "#6e7781")
_INK, _QUIET, _GRID = "#24292f", "#6e7781", "#e6e9ed"


class _Mark(NamedTuple):
    """One figure of one checkpoint."""

    label: str
    value: float
    interval: Any
    chance: float | None = None


def draw(record: Mapping[str, Any], path: Path) -> bool:
    """Draw what there is.

    Returns:
        Whether there was anything; if not, no file is written.
    """
    results = record["checkpoints"]
    panels = [
        ("Bits per byte (less is better)", [list(_texts(one)) for one in results], None),
        ("Right answers; grey marks are chance", [list(_shares(one)) for one in results], 1.0),
    ]
    panels = [panel for panel in panels if any(panel[1])]
    if not panels:
        return False
    heights = [
        max(len(_labels(marks)) * (0.22 + 0.16 * len(results)), 0.8) for _, marks, _ in panels
    ]
    size = (9, sum(heights) + 0.9 * len(panels) + 0.3 + 0.28 * len(results))
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, marks, end) in zip(grid, panels, strict=True):
        _panel(axes, title, marks, end)
    handles = [
        figure.axes[0].plot([], [], "o", color=_COLOURS[n % len(_COLOURS)])[0]
        for n in range(len(results))
    ]
    names = [one["checkpoint"] for one in results]
    figure.legend(handles, names, loc="outside lower left", frameon=False, fontsize=9)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.rename(path)
    return True


def _texts(result: Mapping[str, Any]) -> Iterator[_Mark]:
    for name, part in result.get("text", {}).get("sources", {}).items():
        if math.isfinite(part["bits_per_byte"]):
            yield _Mark(name, part["bits_per_byte"], part["bits_per_byte_95"])


def _shares(result: Mapping[str, Any]) -> Iterator[_Mark]:
    for suite, scores in result.get("suites", {}).items():
        yield _Mark(f"{suite}: score", scores["score"], scores["score_95"], 0.0)
        for name, task in scores["tasks"].items():
            yield _Mark(name, task["accuracy"], task["accuracy_95"], task["chance"])
    for name, task in result.get("tasks", {}).items():
        yield _Mark(name, task["accuracy"], task["accuracy_95"], task["chance"] or None)
        for k, value in task.get("pass_at", {}).items():
            yield _Mark(f"{name}, pass@{k}", value["value"], value["interval_95"])


def _labels(by_checkpoint: list[list[_Mark]]) -> list[str]:
    return list(dict.fromkeys(mark.label for marks in by_checkpoint for mark in marks))


def _panel(axes: Any, title: str, by_checkpoint: list[list[_Mark]], end: float | None) -> None:
    labels = _labels(by_checkpoint)
    room = 0.7 / len(by_checkpoint)
    for nth, marks in enumerate(by_checkpoint):
        colour = _COLOURS[nth % len(_COLOURS)]
        for mark in marks:
            at = labels.index(mark.label) + (nth - (len(by_checkpoint) - 1) / 2) * room
            if mark.interval is not None:
                axes.plot(mark.interval, [at, at], color=colour, linewidth=2, alpha=0.45)
            axes.plot(mark.value, at, "o", color=colour, markersize=6)
            right = mark.value if mark.interval is None else max(mark.interval[1], mark.value)
            axes.annotate(
                f"{mark.value:.2f}" if end else number(mark.value), (right, at), xytext=(5, 0),
                textcoords="offset points", va="center", fontsize=8.5, color=colour,
            )  # fmt: skip
            if mark.chance is not None:
                place = labels.index(mark.label)
                axes.plot([mark.chance] * 2, [place - 0.38, place + 0.38], color=_QUIET, alpha=0.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=9.5, color=_INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    if end is not None:
        low = min(
            0.0, *(m.interval[0] if m.interval else m.value for ms in by_checkpoint for m in ms)
        )
        axes.set_xlim(low - 0.02, end * 1.08)
    else:
        axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=11.5, color=_INK)
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelcolor=_INK)
