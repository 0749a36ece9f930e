"""A plan as people read it: tables for the terminal, bars for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from llm.plan.estimate import Estimate, gib
from llm.plan.exact import Compiled
from llm.plan.remedies import Remedy
from llm.report.numbers import clock, si

_COLOURS = {
    "weights": "#2563a8",
    "optimizer": "#6d9bd1",
    "average (EMA)": "#a9c6e8",
    "reference": "#7a4fa3",
    "weights to compute with": "#9d86c2",
    "gradients": "#d9600f",
    "activations": "#2a8a57",
    "logits": "#8cc7a4",
    "KV cache": "#c9a227",
    "other KV caches": "#e6d48f",
    "workspace": "#b0b7be",
    "batch": "#6e7781",
    "program": "#d0d5da",
}
_LEAST = 0.005  # GiB that are worth a line
_RED, _INK = "#c0262d", "#24292f"


def show(
    console: Console,
    found: Estimate,
    ways: Sequence[Remedy],
    exact: Sequence[Compiled],
) -> None:
    """Write tables and the verdict."""
    shown = _figures(found), _memory(found, exact), _times(found), _verdict(found, ways)
    console.print(Group(*shown), soft_wrap=True)


def _figures(found: Estimate) -> RenderableType:
    target, experiment = found.target, found.experiment
    of_them = f", {si(found.trained)} of them trained" if found.trained < found.parameters else ""
    devices = f"{target.spec.devices} x {target.name}"
    per_token = found.model_flops / found.tokens_per_step
    return Group(
        Text(f"\n{experiment.name} on {devices}", style="bold"),
        Text(
            f"{si(found.parameters)} parameters{of_them}; {si(found.tokens_per_step)} tokens and "
            f"{si(found.model_flops)}FLOP a step ({si(per_token)}FLOP a token); "
            f"{target.spec.compute_dtype}, attention={target.spec.attention}, "
            f"remat={target.spec.remat}\n"
        ),
    )


def _memory(found: Estimate, exact: Sequence[Compiled]) -> RenderableType:
    table = Table("GiB on a device", box=None, header_style="bold", pad_edge=False)
    for stage in found.stages:
        table.add_column(stage.name, justify="right")
    for name in _COLOURS:
        most = max(stage.need.parts.get(name, 0) for stage in found.stages)
        if gib(most) < _LEAST:
            continue
        sizes = (stage.need.parts.get(name) for stage in found.stages)
        table.add_row(name, *("" if size is None else f"{gib(size):.2f}" for size in sizes))
    totals = [f"{gib(stage.need.total):.2f}" for stage in found.stages]
    table.add_row("in all", *totals, style="bold")
    if exact:
        by_stage = {one.stage.name: one for one in exact}
        figures = [by_stage.get(stage.name) for stage in found.stages]
        table.add_row(
            "the compiler's figure", *(f"{gib(c.total):.2f}" if c else "" for c in figures)
        )
    return table


def _times(found: Estimate) -> RenderableType:
    seconds = found.step_seconds
    if not seconds:
        return Text("\nNo time is known: hardware.peak_tflops and hardware.bandwidth would tell.")
    parts = [
        f"{stage.name} {_duration(stage.per_step * (stage.work.seconds(found.target) or 0))}"
        for stage in found.stages
    ]
    split = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    hours = float(f"{found.device_hours or 0:.2g}")
    return Text(
        f"\nRoofline: {_duration(seconds)} a step{split}, {si(found.tokens_per_step / seconds)} "
        f"tokens/s, MFU {found.mfu or 0:.0%}. {found.experiment.trainer.steps:,} steps in "
        f"{clock(seconds * found.experiment.trainer.steps)}, {hours:,g} device hours."
    )


def _verdict(found: Estimate, ways: Sequence[Remedy]) -> RenderableType:
    need, there = found.peak.need.total, found.target.memory
    if found.fits:
        spare = f"{gib(there - need):.1f} of {gib(there):.1f} GiB are left"
        return Text(f"Fits: {spare} in its fullest stage, {found.peak.name}.\n", style="green")
    lines = [
        Text(
            f"Does not fit: {found.peak.name} needs {gib(need):.1f} GiB, and there are "
            f"{gib(there):.1f} GiB.",
            style="bold red",
        )
    ]
    for way in ways:
        what = "the same run" if way.same else "another run"
        total = gib(way.estimate.peak.need.total)
        seconds = way.estimate.step_seconds
        pace = f", {_duration(seconds)} a step by the roofline" if seconds else ""
        lines.append(Text(f"  {' '.join(way.words)}   {total:.1f} GiB{pace} ({what})"))
    if not ways:
        lines.append(Text("  Nothing that was tried makes it fit."))
    return Group(*lines, Text(""))


def draw(found: Estimate, path: Path) -> None:
    """One bar per stage, made of its parts, beside the memory that there is."""
    stages = list(reversed(found.stages))
    figure = Figure(figsize=(9, 1.7 + 0.55 * len(stages)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    begin = [0.0] * len(stages)
    for name, colour in _COLOURS.items():
        sizes = [gib(stage.need.parts.get(name, 0)) for stage in stages]
        if max(sizes) < _LEAST:
            continue
        axes.barh(range(len(stages)), sizes, 0.62, left=begin, color=colour, label=name)
        begin = [a + b for a, b in zip(begin, sizes, strict=True)]
    there = gib(found.target.memory)
    axes.axvline(there, color=_RED, linewidth=1.6)
    axes.set_xlim(0, 1.06 * max(there, *begin))
    axes.text(there, len(stages) - 0.45, f" {there:.1f} GiB", color=_RED, va="bottom", ha="center")
    for place, end in enumerate(begin):
        axes.text(end, place, f" {end:.2f}", va="center", color=_INK, fontsize=10)
    axes.set_yticks(range(len(stages)), [stage.name for stage in stages])
    axes.set_xlabel("GiB on a device")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    title = f"{found.experiment.name} on {found.target.spec.devices} x {found.target.name}"
    figure.suptitle(title, x=0.01, ha="left", color=_INK)
    figure.legend(loc="outside lower left", ncols=5, frameon=False, fontsize=9)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png")
    temporary.rename(path)


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
