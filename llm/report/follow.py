"""A run or a sweep as it goes on, in the terminal: read from its folder, again and again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llm.report.numbers import clock, number, si
from llm.report.sweep_folder import Point, brief, is_sweep, read_run, read_sweep

_LEAST_PAUSE = 2.0  # seconds between two looks
_BARS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"finished": "green", "failed": "red", "killed": "red", "stopped": "yellow"}
_CURVES = ("train/loss", "eval/loss", "reward/mean", "eval/accuracy", "perf/tokens_per_second")


def follow(folder: Path, console: Console | None = None, pause: float = _LEAST_PAUSE) -> None:
    """Show the folder until nothing in it goes on any more, or Ctrl-C.

    Args:
        folder: of a run or a sweep.
        console: where to; standard output by default.
        pause: seconds between two looks at least; longer if looking takes long.
    """
    console = console or Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            shown, going = look(folder)
            live.update(shown, refresh=True)
            if not going:
                return
            try:
                time.sleep(max(pause, 5 * (time.monotonic() - begun)))
            except KeyboardInterrupt:
                return


def look(folder: Path) -> tuple[Any, bool]:
    """What there is to see now, and whether anything goes on."""
    return _sweep(folder) if is_sweep(folder) else _run(read_run(folder))


def _sweep(folder: Path) -> tuple[Any, bool]:
    sweep = read_sweep(folder)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("", *map(sweep.short, sweep.swept), "step", "tokens", str(sweep.objective)):
        table.add_column(Text(name), overflow="fold")  # a plain string would be markup
    for point in sweep.points:
        value = point.value(sweep.objective)
        table.add_row(
            Text(point.status, _COLOURS.get(point.status, "")),
            *(Text(brief(point.words.get(key, ""))) for key in sweep.swept),
            _steps(point),
            si(point.history.tokens),
            number(value),
        )
    left = sweep.with_status("running", "waiting")
    return table, bool(left) and not sweep.record.get("ended")


def _run(point: Point) -> tuple[Any, bool]:
    history = point.history
    title = Text.assemble(
        (f"{point.run.get('title') or ''} ", "bold"),
        (point.status, _COLOURS.get(point.status, "cyan")),
        f"  step {_steps(point)}  {si(history.tokens)} tokens",
    )
    if point.status == "running" and history.events:
        title.append(f"  last event {clock(time.time() - history.time)} ago", "dim")
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in _CURVES:
        curve = history.curve(name)
        if curve is not None and curve.finite.values.size:
            values = curve.finite.values
            bars = _sparkline([float(v) for v in values])
            table.add_row(f"{name}  ", Text(bars, "cyan"), f"  {number(float(values[-1]))}")
    return Group(title, table), point.status == "running"


def _steps(point: Point) -> str:
    total = ((point.run.get("specs") or {}).get("trainer") or {}).get("steps")
    return f"{point.history.step:,}/{total:,}" if total else f"{point.history.step:,}"


def _sparkline(values: list[float], width: int = 48) -> str:
    """Means of stretches as bars, the smallest of them the lowest."""
    size = max(len(values) / width, 1.0)
    n = round(len(values) / size)
    parts = [values[int(i * size) : max(int((i + 1) * size), int(i * size) + 1)] for i in range(n)]
    means = [sum(part) / len(part) for part in parts if part]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 2) / (high - low) if high > low else 0.0
    return "".join(_BARS[1 + round((mean - low) * scale)] for mean in means)
