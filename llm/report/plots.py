"""curves.png: loss, reward, learning rate and throughput against tokens or steps, a panel each.

Uses matplotlib's objects and not pyplot, which keeps global state and is not thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from llm.report.numbers import number, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

INK, QUIET, GRID = "#24292f", "#6e7781", "#e6e9ed"
_BLUE, _ORANGE, _GREEN, _PURPLE = "#2563a8", "#d9600f", "#2a8a57", "#7a4fa3"
_RED = "#c0262d"
_MOST_POINTS = 3000  # per line; more than the picture has pixels
WIDTH, _FIRST, _OTHER = 9.0, 4.2, 2.1  # inches
DPI = 150


@dataclass(frozen=True)
class Curve:
    """One metric: its name and its values (NaN where it was not a number), in order."""

    name: str
    at: Floats
    """Tokens or steps that were done."""
    values: Floats

    @property
    def finite(self) -> Curve:
        """The points that can be drawn."""
        good = np.isfinite(self.values) & np.isfinite(self.at)
        return Curve(self.name, self.at[good], self.values[good])


@dataclass(frozen=True)
class _Panel:
    """What one panel shows: names to look for and how they are drawn."""

    title: str
    lines: tuple[tuple[str, str, str], ...]  # metric, label, colour
    smooth: bool = False
    dots: tuple[tuple[str, str, str], ...] = ()
    higher_is_better: bool = False
    from_zero: bool = False
    linear: bool = False
    """Also where the values span more than a factor. What is better when higher always is."""
    noise: float = 0.0
    """Differences below it are rounding, and not drawn as mountains."""


_PANELS = (
    _Panel(
        "Reward",
        lines=(("reward/mean", "mean", _GREEN),),
        smooth=True,
        dots=(("eval/accuracy", "held-out accuracy", _ORANGE),),
        higher_is_better=True,
    ),
    _Panel(
        "Tokens per answer",
        lines=(("completions/length_mean", "", _BLUE),),
        smooth=True,
        from_zero=True,
    ),
    _Panel(
        "Divergence of the policy",
        lines=(("policy/kl", "", _PURPLE),),
        smooth=True,
        linear=True,
        noise=1e-5,
    ),
    _Panel(
        "Entropy of the policy", lines=(("policy/entropy", "", _BLUE),), smooth=True, linear=True
    ),
    _Panel(
        "Loss",
        lines=(("train/loss", "train", _BLUE),),
        dots=(("eval/loss", "held out", _ORANGE),),
        smooth=True,
        noise=1e-5,  # a policy's is 0 but for that while it is its own old policy
    ),
    _Panel(
        "Bits per byte, held out",
        lines=(),
        dots=(("eval/bits_per_byte", "", _ORANGE),),
    ),
    _Panel(
        "Answers equal to the data's, held out",
        lines=(),
        dots=(("eval/exact_match", "", _GREEN),),
        higher_is_better=True,
    ),
    _Panel("Gradient norm", lines=(("train/grad_norm", "", _PURPLE),), smooth=True),
    _Panel("Learning rate", lines=(("train/lr", "", INK),), from_zero=True),
    _Panel(
        "Tokens per second",
        lines=(("perf/tokens_per_second", "", _GREEN),),
        smooth=True,
        from_zero=True,
    ),
)


def draw_curves(curves: Sequence[Curve], path: Path, title: str, unit: str = "tokens") -> bool:
    """Draw the panels that have data, one above the other, into a PNG file.

    Args:
        curves: the metrics of a run; those that no panel shows are ignored.
        path: where the picture goes.
        title: one line above the first panel.
        unit: of the horizontal axis, `tokens` or `steps`.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    whole = {c.name: c for c in curves}
    have = {c.name: c.finite for c in curves if c.finite.values.size}
    panels = [p for p in _PANELS if any(name in have for name, _, _ in (*p.lines, *p.dots))]
    if not panels:
        return False
    heights = [_FIRST] + [_OTHER] * (len(panels) - 1)
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.7), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=14, fontweight="bold", color=INK)
    grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)
    shown = [have[n] for p in panels for n, _, _ in (*p.lines, *p.dots) if n in have]
    last = max(float(c.at.max()) for c in shown)
    for i, (axes, panel) in enumerate(zip(grid[:, 0], panels, strict=True)):
        axes.set_xlim(0, (last or 1.0) * 1.01)
        _draw(axes, panel, have, tall=i == 0)
        for name, _, _ in panel.lines:
            # A policy's are missing where nothing was trained on: no cause for alarm.
            if name in whole and not name.startswith("policy/"):
                _note_gaps(axes, whole[name], unit)
    bottom = grid[-1, 0]
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    bottom.xaxis.set_major_locator(MaxNLocator(8))
    bottom.set_xlabel(unit, color=QUIET, fontsize=11)
    figure.savefig(path, format="png")
    return True


def smooth(values: Floats, share: float = 0.02) -> Floats:
    """A centred running mean over about `share` of the points on either side.

    The window is narrow at the start, where the loss falls fast, so the fall stays where it is.
    """
    n = values.size
    index = np.arange(n)
    widest = max(1, round(n * share))
    reach = np.minimum(widest, index // 4)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low, high = index - reach, np.minimum(index + reach + 1, n)
    result: Floats = (sums[high] - sums[low]) / (high - low)
    return result


def thin_out(at: Floats, values: Floats, most: int = _MOST_POINTS) -> tuple[Floats, Floats]:
    """Fewer points that look the same: the smallest and largest of each stretch, in order."""
    n = values.size
    if n <= most:
        return at, values
    stretch = -(-n // (most // 2))
    whole = n // stretch * stretch
    blocks = values[:whole].reshape(-1, stretch)
    starts = np.arange(blocks.shape[0]) * stretch
    ends = np.array([0, n - 1])
    picks = np.concatenate([starts + blocks.argmin(1), starts + blocks.argmax(1), ends])
    keep = np.unique(picks)
    return at[keep], values[keep]


def _draw(axes: Axes, panel: _Panel, have: dict[str, Curve], *, tall: bool) -> None:
    dress(axes, panel.title)
    drawn = []
    for name, label, colour in panel.lines:
        if name in have:
            drawn.append(_draw_line(axes, have[name], label, colour, panel.smooth))
    for name, label, colour in panel.dots:
        if name in have:
            drawn.append(_draw_dots(axes, have[name], label, colour, panel))
    values = np.concatenate(drawn)
    if np.ptp(values) < panel.noise:
        middle = round(float(values.mean()) / panel.noise) * panel.noise
        axes.set_ylim(middle - panel.noise, middle + panel.noise)
    linear = panel.linear or panel.higher_is_better or bool(np.ptp(values) < panel.noise)
    scale(axes, values, from_zero=panel.from_zero, linear=linear, tall=tall)


def _draw_line(axes: Axes, curve: Curve, label: str, colour: str, smoothed: bool) -> Floats:
    """A line with its label at its end; a noisy one is pale, with its running mean on top."""
    at, values = curve.at, curve.values
    if values.size == 1:
        axes.plot(at, values, "o", color=colour, markersize=6)
    elif smoothed and values.size >= 20:
        axes.plot(*thin_out(at, values), color=colour, alpha=0.28, linewidth=0.9)
        values = smooth(values)
        axes.plot(*thin_out(at, values), color=colour, linewidth=2.0)
    else:
        axes.plot(*thin_out(at, values), color=colour, linewidth=2.0)
    if label:
        _label(axes, (at[-1], values[-1]), label, colour, above=False)
    return curve.values


def _draw_dots(axes: Axes, curve: Curve, label: str, colour: str, panel: _Panel) -> Floats:
    """Measurements now and then: dots on a thin line, the best one ringed and named."""
    at, values = thin_out(curve.at, curve.values, 400)
    size = 5.5 if values.size <= 60 else 0.0
    axes.plot(
        at, values, "-o", color=colour, linewidth=1.4, markersize=size,
        markeredgecolor="white", markeredgewidth=0.8, zorder=3,
    )  # fmt: skip
    best = int(values.argmax() if panel.higher_is_better else values.argmin())
    axes.plot(
        at[best], values[best], "o", markersize=11, zorder=4,
        markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6,
    )  # fmt: skip
    words = [label, "best" if values.size > 1 else "", number(values[best])]
    text = " ".join(filter(None, words))
    _label(axes, (at[best], values[best]), text, colour, above=True)
    return values


def _label(axes: Axes, at: tuple[float, float], text: str, colour: str, *, above: bool) -> None:
    """A label beside its point, in the colour of its line, reaching to where there is room."""
    axes.annotate(
        text, at, xytext=(0, 13 if above else -9), textcoords="offset points",
        ha="left" if at[0] < axes.get_xlim()[1] / 3 else "right", va="bottom" if above else "top",
        color=colour, fontsize=10.5, fontweight="bold", annotation_clip=False, zorder=5,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )  # fmt: skip


def _note_gaps(axes: Axes, curve: Curve, unit: str) -> None:
    """Say where a metric was not a number: a line that ends early is easily overlooked."""
    bad = ~np.isfinite(curve.values)
    if bad.any():
        first = si(float(curve.at[bad.argmax()]))
        text = f"{int(bad.sum()):,} values not finite, the first at {first} {unit}"
        axes.text(
            1, 1.02, text, transform=axes.transAxes, ha="right", va="bottom",
            color=_RED, fontsize=10,
        )  # fmt: skip


def dress(axes: Axes, title: str) -> None:
    """Title, quiet frame and grid."""
    axes.set_title(title, loc="left", fontsize=11.5, color=INK, pad=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, labelsize=10, length=0, labelcolor=QUIET)
    axes.tick_params(axis="x", length=3)


def scale(axes: Axes, values: Floats, *, from_zero: bool, tall: bool, linear: bool = False) -> None:
    """Logarithmic where values span more than a factor, which a falling loss does."""
    low, high = float(values.min()), float(values.max())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    if from_zero:
        axes.set_ylim(0, high * 1.12 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    elif low > 0 and high / low > 2.5 and not linear:
        axes.set_yscale("log")
        # Gridlines at round numbers, closer together where there is room for them.
        subs = (1, 2, 5) if not tall or high / low > 12 else (1, 1.5, 2, 3, 5, 7)
        axes.yaxis.set_major_locator(LogLocator(10, subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.12, high * 1.08)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(y=0.18)


def tick(value: float) -> str:
    """A tick as short as it can be: 3e-4, 0.5, 12, 1.2k."""
    if value == 0:
        return "0"
    if abs(value) < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if abs(value) < 1000:
        return f"{value:.4g}"
    digits, letter = si(value)[:-1], si(value)[-1]
    return f"{float(digits):g}{letter}"
