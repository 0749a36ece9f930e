"""Pictures of a sweep: all curves in one, and what became of each combination of values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from llm.report.best import direction
from llm.report.importance import as_number, in_order
from llm.report.numbers import number
from llm.report.plots import (
    DPI,
    GRID,
    INK,
    QUIET,
    WIDTH,
    Curve,
    dress,
    scale,
    smooth,
    thin_out,
    tick,
)
from llm.report.sweep_folder import Setting, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#2563a8", "#d9600f", "#2a8a57", "#7a4fa3", "#b8860b", "#c0262d", "#0f8b8d", "#6e7781")
_MAP = "viridis"
_NAMED = 8  # curves with a name and a colour of their own; of more, the best ones


def draw_sweep_curves(sweep: Sweep, path: Path) -> bool:
    """The objective and the training loss of all settings against training, means over seeds.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    # A policy's loss says nothing to people.
    second = "reward/mean" if sweep.unit == "steps" else "train/loss"
    names = dict.fromkeys([sweep.objective.metric, second])
    if sweep.tokenizers_differ and not sweep.objective.per_token:
        names.pop("train/loss", None)  # per token, it would show the opposite
    panels = [name for name in names if any(_curves(sweep, s, name) for s in sweep.ranked)]
    if not panels:
        return False
    figure = _figure(3.9 * len(panels) + 0.6, f"{sweep.folder.resolve().name}: curves")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, name in zip(grid[:, 0], panels, strict=True):
        _overlay(axes, sweep, name)
    bottom = grid[-1, 0]
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    bottom.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    bottom.set_xlabel(sweep.unit, color=QUIET, fontsize=11)
    shown = min(len(sweep.ranked), _NAMED)
    title = "best first" if shown == len(sweep.ranked) else f"the {shown} best"
    if any(len(setting.values) > 1 for setting in sweep.ranked):
        title += "; lines are means over seeds, bands their range"
    # Below the panels: names are long, and curves go everywhere.
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower left", frameon=False,
        fontsize=10, labelcolor=INK, title=title, alignment="left", ncols=_columns(sweep),
    )  # fmt: skip
    figure.savefig(path, format="png")
    return True


def draw_sweep_map(sweep: Sweep, path: Path) -> str | None:
    """The objective by the values of the swept fields: dots, a heat map, or parallel coordinates.

    Returns:
        What was drawn, in words; None if there was nothing to draw.
    """
    fields = [f for f in sweep.fields if len({dict(s.words).get(f) for s in sweep.ranked}) > 1]
    if not fields or len(sweep.ranked) < 2:
        return None
    if len(fields) == 1:
        draw, words = _dots, f"{sweep.objective} against {sweep.short(fields[0])}"
    elif len(fields) == 2 and _is_grid(sweep.ranked, fields):
        draw, words = _heat_map, f"{sweep.objective} by {' and '.join(map(sweep.short, fields))}"
    else:
        draw, words = _parallel, f"{sweep.objective} of each combination"
    figure = _figure(4.8, words)
    draw(figure, sweep, fields)
    figure.savefig(path, format="png")
    return words


def _figure(height: float, title: str) -> Figure:
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=14, fontweight="bold", color=INK)
    return figure


def _columns(sweep: Sweep) -> int:
    longest = max(len(sweep.label(setting.words)) for setting in sweep.ranked)
    return 1 if longest > 48 else 2 if longest > 22 else 3


def _curves(sweep: Sweep, setting: Setting, name: str) -> list[Curve]:
    found = [point.curve(name, sweep.unit) for point in setting.points]
    return [curve.finite for curve in found if curve is not None and curve.finite.values.size > 1]


def _overlay(axes: Axes, sweep: Sweep, name: str) -> None:
    dress(axes, name)
    drawn = []
    # The best last, on top.
    for place, setting in reversed(list(enumerate(sweep.ranked))):
        curves = _curves(sweep, setting, name)
        if not curves:
            continue
        at = curves[0].at
        if any(c.at.shape != at.shape or not np.allclose(c.at, at) for c in curves):
            at = np.linspace(
                max(c.at[0] for c in curves), min(c.at[-1] for c in curves),
                max(c.at.size for c in curves),
            )  # fmt: skip
        values = np.stack([np.interp(at, c.at, _calm(c.values)) for c in curves])
        mean = values.mean(0)
        named = place < _NAMED
        colour = _COLOURS[place] if named else GRID
        if len(curves) > 1 and named:
            axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        axes.plot(
            *thin_out(at, mean), color=colour, linewidth=2.4 if place == 0 else 1.5,
            zorder=3 if named else 1.5, marker="o" if at.size <= 30 else "", markersize=3.5,
            label=f"{place + 1}. {sweep.label(setting.words)}" if named else None,
        )  # fmt: skip
        drawn.append(mean)
    scale(axes, np.concatenate(drawn), from_zero=False, linear=direction(name) > 0, tall=True)


def _calm(values: Any) -> Any:
    return smooth(values) if values.size >= 20 else values


def _limits(values: Sequence[float], sign: int) -> Normalize:
    """Colours for the values, without those so bad that all others would look alike."""
    low, high = float(min(values)), float(max(values))
    first, third = np.quantile(values, [0.25, 0.75])
    reach = 2 * (third - first)
    if len(values) >= 4 and reach > 0:
        low, high = (
            (low, min(high, third + reach)) if sign <= 0 else (max(low, first - reach), high)
        )
    return Normalize(low, high)


def _colour_map(sign: int) -> Any:
    """Light is good."""
    return colormaps[f"{_MAP}_r" if sign <= 0 else _MAP]


def _dots(figure: Figure, sweep: Sweep, fields: list[str]) -> None:
    axes = figure.subplots()
    dress(axes, "each dot a run, the line their mean")
    field = fields[0]
    by_value = {dict(s.words).get(field, ""): s for s in sweep.ranked}
    empty = {dict(words).get(field, ""): status for words, status in sweep.unmeasured.items()}
    values = in_order([*by_value, *empty])
    numbers = [as_number(value) for value in values]
    spaced = [x for x in numbers if x is not None]
    at = [float(i) for i in range(len(values))]
    named = set(range(len(values)))
    if len(spaced) == len(values):
        at = spaced
        logarithmic = min(at) > 0 and max(at) / min(at) > 8
        if logarithmic:
            axes.set_xscale("log")
        places = np.log(at) if logarithmic else np.array(at)
        named = apart(places, 0.015 * max(map(len, values)))
    means = {}
    for x, value in zip(at, values, strict=True):
        if value in by_value:
            some = by_value[value].values
            axes.plot([x] * len(some), some, "o", color=_COLOURS[0], markersize=7, alpha=0.6, mew=0)
            means[x] = by_value[value].mean
        else:
            axes.axvline(x, color=GRID, zorder=0)
            axes.text(
                x, 0.02, empty[value], transform=axes.get_xaxis_transform(), ha="center",
                fontsize=10.5, color=QUIET,
            )  # fmt: skip
    axes.plot(list(means), list(means.values()), "-", color=_COLOURS[0], linewidth=1.6)
    best = min(means, key=lambda x: -(sweep.objective.sign or -1) * means[x])
    value = values[at.index(best)]
    side = "left" if best == at[0] else "right" if best == at[-1] else "center"
    axes.annotate(
        f"best: {value}, {number(means[best])}", (best, min(by_value[value].values)),
        xytext=(0, -10), textcoords="offset points", ha=side, va="top", color=_COLOURS[0],
        fontweight="bold", path_effects=[withStroke(linewidth=3, foreground="white")],
    )  # fmt: skip
    axes.set_xticks(at, [value if i in named else "" for i, value in enumerate(values)])
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.22)
    axes.set_xlabel(field, color=QUIET, fontsize=11)


def apart(places: np.ndarray, least: float) -> set[int]:
    """Which of these places, which rise, are so far from each other that their labels have room.

    `least` is a share of the whole width. The last is among them.
    """
    shown = [len(places) - 1]
    for i in reversed(range(len(places) - 1)):
        if places[shown[-1]] - places[i] >= least * (places[-1] - places[0]):
            shown.append(i)
    return set(shown)


def _is_grid(settings: Sequence[Setting], fields: list[str]) -> bool:
    """Few enough values, and at least half of their combinations measured."""
    counts = [len({dict(s.words).get(f) for s in settings}) for f in fields]
    return max(counts) <= 12 and len(settings) * 2 >= math.prod(counts)


def _heat_map(figure: Figure, sweep: Sweep, fields: list[str]) -> None:
    axes = figure.subplots()
    # The field with more values along the longer side.
    empty = [(dict(setting), status) for setting, status in sweep.unmeasured.items()]
    known = [dict(s.words) for s in sweep.ranked] + [own for own, _ in empty]
    columns = {f: in_order([own.get(f, "") for own in known]) for f in fields}
    across, down = sorted(fields, key=lambda f: -len(columns[f]))
    cells = np.full((len(columns[down]), len(columns[across])), np.nan)
    words = {}
    for setting in sweep.ranked:
        own = dict(setting.words)
        row, column = columns[down].index(own[down]), columns[across].index(own[across])
        cells[row, column] = setting.mean
        spread = "" if setting.spread is None else f"\n± {number(setting.spread)}"
        words[row, column] = number(setting.mean) + spread
    sign = sweep.objective.sign
    limits = _limits([s.mean for s in sweep.ranked], sign)
    image = axes.imshow(cells, cmap=_colour_map(sign), norm=limits, aspect="auto")
    for (row, column), text in words.items():
        red, green, blue, _ = image.cmap(limits(cells[row, column]))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
        axes.text(
            column, row, text, ha="center", va="center", fontsize=10.5,
            color="white" if dark else INK,
        )  # fmt: skip
    for own, status in empty:
        row = columns[down].index(own.get(down, ""))
        column = columns[across].index(own.get(across, ""))
        axes.text(column, row, status, ha="center", va="center", fontsize=10.5, color=QUIET)
    best = dict(sweep.ranked[0].words)
    corner = columns[across].index(best[across]) - 0.5, columns[down].index(best[down]) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#c0262d", linewidth=3, zorder=3))
    axes.set_title("the best is framed", loc="left", fontsize=11.5, color=INK, pad=8)
    axes.set_xticks(range(len(columns[across])), columns[across])
    axes.set_yticks(range(len(columns[down])), columns[down])
    axes.tick_params(colors=QUIET, labelsize=10.5, length=0)
    axes.set_xlabel(across, color=QUIET, fontsize=11)
    axes.set_ylabel(down, color=QUIET, fontsize=11)
    for side in axes.spines.values():
        side.set_visible(False)
    _colour_bar(figure, axes, image, sweep)


def _parallel(figure: Figure, sweep: Sweep, fields: list[str]) -> None:
    axes = figure.subplots()
    places = {f: _places([dict(s.words).get(f, "") for s in sweep.ranked]) for f in fields}
    sign = sweep.objective.sign
    values = [s.mean for s in sweep.ranked]
    limits = _limits(values, sign)
    low, high = float(limits.vmin or 0), float(limits.vmax or 0)
    height = (high - low) or 1.0
    colours = _colour_map(sign)
    for place, setting in reversed(list(enumerate(sweep.ranked))):
        own = dict(setting.words)
        ends = min(max((setting.mean - low) / height, 0.0), 1.0)
        heights = [places[f][own.get(f, "")] for f in fields] + [ends]
        axes.plot(
            *_curved(heights), color="#c0262d" if place == 0 else colours(limits(setting.mean)),
            linewidth=3 if place == 0 else 1.5, alpha=1 if place == 0 else 0.75,
            zorder=4 if place == 0 else 2,
        )  # fmt: skip
    for i, field in enumerate(fields):
        _axis(axes, i, places[field])
    ticks = np.linspace(low, high, 5)
    _axis(axes, len(fields), {number(float(v)): (v - low) / height for v in ticks})
    names = [sweep.short(field) for field in fields]
    axes.set_xticks(range(len(fields) + 1), [*names, str(sweep.objective)])
    axes.tick_params(axis="x", length=0, labelsize=11, labelcolor=INK, pad=10)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(fields) + 0.35)
    axes.set_ylim(-0.06, 1.06)
    axes.set_title("the best in red", loc="left", fontsize=11.5, color=INK, pad=8)
    for side in axes.spines.values():
        side.set_visible(False)
    _colour_bar(figure, axes, ScalarMappable(limits, colours), sweep)


def _curved(heights: list[float]) -> tuple[Any, Any]:
    """A line through the axes, level where it crosses them: its way can be followed."""
    t = np.linspace(0, 1, 24)
    ease = t * t * (3 - 2 * t)
    xs = np.concatenate([i + t for i in range(len(heights) - 1)])
    pairs = itertools.pairwise(heights)
    return xs, np.concatenate([a + (b - a) * ease for a, b in pairs])


def _axis(axes: Axes, x: int, marks: dict[str, float]) -> None:
    axes.plot([x, x], [0, 1], color=QUIET, linewidth=1, zorder=3)
    shown = list(marks.items())
    if len(shown) > 12:  # what a sweeper drew: the ends and some between
        by_height = sorted(shown, key=lambda mark: mark[1])
        shown = [by_height[round(i)] for i in np.linspace(0, len(by_height) - 1, 5)]
    for text, y in shown:
        axes.annotate(
            tick(float(text)) if len(marks) > 12 else text, (x, y), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=9.5, color=INK, zorder=5,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip


def _places(values: list[str]) -> dict[str, float]:
    """Where each value is on its axis, from 0 to 1: many numbers by size, else in order."""
    ordered = in_order(values)
    numbers = [as_number(value) for value in ordered]
    known = np.array([x for x in numbers if x is not None])
    if known.size == len(ordered) > 6:
        spread = np.log(known) if known.min() > 0 and known.max() / known.min() > 8 else known
        heights = (spread - spread.min()) / ((spread.max() - spread.min()) or 1.0)
        return dict(zip(ordered, heights.tolist(), strict=True))
    return {value: (i + 0.5) / len(ordered) for i, value in enumerate(ordered)}


def _colour_bar(figure: Figure, axes: Axes, image: Any, sweep: Sweep) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, aspect=28)
    bar.set_label(str(sweep.objective), color=QUIET, fontsize=10.5)
    bar.ax.tick_params(colors=QUIET, labelsize=9.5, length=0)
    bar.outline.set_visible(False)
