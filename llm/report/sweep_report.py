"""report.md of a sweep: what came out best, which fields mattered, and what failed."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from llm.report.again import words_again
from llm.report.importance import Effect, effects
from llm.report.json_files import write_atomic
from llm.report.markdown import duration, fenced, table
from llm.report.numbers import number, si
from llm.report.sweep_folder import SEED, Point, Setting, Sweep, brief, read_sweep
from llm.report.sweep_plots import draw_sweep_curves, draw_sweep_map

_ORDER = ("finished", "running", "stopped", "failed", "killed", "waiting")
_SHOWN = 10  # settings in the terminal


def write_sweep_report(folder: Path) -> Path:
    """Write report.md and its pictures into a sweep's folder, replacing earlier ones.

    Returns:
        The path of report.md.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    sweep = read_sweep(folder)
    curves = draw_sweep_curves(sweep, folder / "curves.png")
    drawn = draw_sweep_map(sweep, folder / "settings.png")
    sections = [
        f"# Sweep {folder.resolve().name}",
        _summary(sweep),
        _ranking_section(sweep),
        f"![{drawn}](settings.png)" if drawn else "",
        "![curves of all settings](curves.png)" if curves else "",
        _effects_section(sweep),
        _missing_section(sweep),
        _again_section(sweep),
    ]
    path = folder / "report.md"
    write_atomic(path, ("\n\n".join(filter(None, sections)) + "\n").encode("utf-8", "replace"))
    return path


def show_sweep(sweep: Sweep) -> None:
    """Print the best settings and what failed on stdout."""
    console = Console(highlight=False)
    good = not sweep.with_status("failed", "killed")
    colour = "green" if good and not sweep.with_status("waiting", "stopped") else "yellow"
    heading = Text.assemble((f"{sweep.folder.resolve().name}: ", "bold"), (_counts(sweep), colour))
    console.print(Rule(heading, style=colour, align="left"))
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    rows.add_column("", justify="right", style="dim")
    for field in sweep.fields:
        rows.add_column(Text(sweep.short(field)), overflow="fold")
    rows.add_column(Text(_value_name(sweep)), justify="right")
    seeds = any(setting.planned > 1 for setting in sweep.ranked)
    if seeds:
        rows.add_column("seeds", justify="right")
    for place, setting in enumerate(sweep.ranked[:_SHOWN], 1):
        # Text: of a plain string, rich would take what is in brackets for markup.
        cells = [Text(brief(dict(setting.words).get(field, ""))) for field in sweep.fields]
        own = [Text(_value(setting)), *([Text(_seeds(setting))] if seeds else [])]
        rows.add_row(str(place), *cells, *own, style="bold" if place == 1 else "")
    if sweep.ranked:
        console.print(rows)
    if len(sweep.ranked) > _SHOWN:
        console.print(f"  and {len(sweep.ranked) - _SHOWN} more", style="dim")
    for point in sweep.with_status("failed", "killed"):
        name = point.folder.name if point.folder else ""
        console.print(Text.assemble((f"  {name}: ", "red"), point.error or ""), soft_wrap=True)
    console.print(Text.assemble(("  report  ", "dim"), str(sweep.folder / "report.md")),
                  soft_wrap=True)  # fmt: skip
    if sweep.with_status("waiting", "stopped", "failed", "killed"):
        console.print(
            Text.assemble(("  next    ", "dim"), (_resume(sweep), "cyan")), soft_wrap=True
        )
    console.print(Rule(style=colour))
    sys.stdout.flush()


def _counts(sweep: Sweep) -> str:
    counts = Counter(point.status for point in sweep.points)
    return ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])


def _summary(sweep: Sweep) -> str:
    n = len(sweep.points)
    lines = [f"**{n} points: {_counts(sweep)}**" if n else "**no point has begun yet**"]
    if sweep.ranked:
        lower = {-1: "lower is better", 1: "higher is better", 0: "shown from low to high"}
        lines.append(
            f"Compared by `{sweep.objective}` ({lower[sweep.objective.sign]}), {_when(sweep)}."
        )
        if sweep.tokenizers_differ and sweep.objective.per_token:
            lines.append("Tokenizers differ, and this is per token: it may rank them wrongly.")
        if sweep.tokenizers_differ and sweep.unit == "tokens":
            lines.append("Tokenizers differ, so after as many tokens they have not seen as much.")
    if not sweep.with_status("finished") and sweep.compared:
        lines.append("None is finished: this is how they stand so far.")
    for word, checkpoint in (sweep.record.get("last") or {}).items():
        lines.append(f"`{word}` was `{checkpoint}` when it began.")
    seconds = sum(point.seconds for point in sweep.points)
    if seconds:
        lines.append(f"Time of all runs together: {duration(seconds)}.")
    return "\n\n".join([lines[0], " ".join(lines[1:])] if lines[1:] else lines)


def _when(sweep: Sweep) -> str:
    amount = f"{si(sweep.amount)} {sweep.unit}" + (" of text" if sweep.unit == "bytes" else "")
    if sweep.even:
        return f"after {amount} each"
    return (
        f"after {amount}, which all of them have done (some did more: for "
        "their last value see the column *at the end*)"
    )


def _value_name(sweep: Sweep) -> str:
    at = "" if sweep.even else f" at {si(sweep.amount)} {sweep.unit}"
    return f"{sweep.objective}{at}"


def _value(setting: Setting) -> str:
    spread = "" if setting.spread is None else f" ± {number(setting.spread)}"
    return number(setting.mean) + spread


def _seeds(setting: Setting) -> str:
    """How many seeds the value is of, and what became of the others."""
    n = len(setting.values)
    words = str(n) if n == setting.planned else f"{n} of {setting.planned}"
    return f"{words}, {setting.failed} failed" if setting.failed else words


def _ranking_section(sweep: Sweep) -> str:
    if not sweep.ranked:
        return ""
    seeds = any(setting.planned > 1 for setting in sweep.ranked)
    header = ["", *map(sweep.short, sweep.fields), _value_name(sweep)]
    header += [] if sweep.even else ["at the end"]
    header += ["seeds"] if seeds else []
    header += ["runs"]
    rows = []
    for place, setting in enumerate(sweep.ranked, 1):
        own = dict(setting.words)
        row = [str(place), *(brief(own.get(field, "")) for field in sweep.fields), _value(setting)]
        if not sweep.even:
            ends = [p.value(sweep.objective) for p in setting.points]
            most = max(point.done(sweep.unit) for point in setting.points)
            there = [end for end in ends if end is not None]
            row.append(f"{number(sum(there) / len(there))} ({si(most)})")
        row += [_seeds(setting)] if seeds else []
        links = [_link(point, str(i)) for i, point in enumerate(setting.points, 1)]
        rows.append((*row, " ".join(links)))
    lines = ["## Ranking", "", table(rows, tuple(header))]
    if any(setting.spread is not None for setting in sweep.ranked):
        lines += ["", "± is the standard deviation over seeds."]
    if any(setting.failed for setting in sweep.ranked):
        lines += ["", "Settings with a failed seed come last: their mean is of the others only."]
    if note := _near_best(sweep):
        lines += ["", note]
    return "\n".join(lines)


def _near_best(sweep: Sweep) -> str:
    """Which settings the seeds do not tell from the best."""
    best = sweep.ranked[0]
    if best.spread is None or len(sweep.ranked) < 2:
        return ""
    near = [
        str(place)
        for place, other in enumerate(sweep.ranked[1:], 2)
        if other.spread is not None and abs(other.mean - best.mean) <= best.spread + other.spread
    ]
    if not near:
        return ""
    return (
        f"The seeds do not tell number {', '.join(near)} from the first: the means differ by less "
        "than both spreads together."
    )


def _link(point: Point, text: str) -> str:
    assert point.folder is not None
    # Angle brackets: a folder's name has commas, equals signs and quotes in it.
    return f"[{text}](<{point.folder.name}/report.md>)"


def _effects_section(sweep: Sweep) -> str:
    points = [
        (dict(point.setting), value)
        for point in sweep.compared
        if (value := sweep.value(point)) is not None
    ]
    found = effects([words for words, _ in points], [value for _, value in points])
    if not found:
        return ""
    rows = [(f"`{e.field}`", _share(e), _means(e, sweep.objective.sign)) for e in found]
    note = (
        f"Share of the variance of {sweep.objective} over {len(points)} points that each field "
        "explains, the others being as they were (omega squared). What is left is noise and what "
        "fields do together."
    )
    if any(effect.share is None for effect in found):
        note += (
            " A share cannot be told where a field changed only together with others, or where "
            "there are no more points than the fields have values: no noise is left to tell by."
        )
    elif len(points) < 12:
        note += f" From {len(points)} points this is a hint, not a finding."
    if SEED in sweep.swept:
        note += " The seed is the yardstick and has no row: what it does is noise."
    return "\n".join(
        [
            "## Which fields mattered",
            "",
            note,
            "",
            table(rows, ("field", "share", "means, best first"), numbers=False),
        ]
    )


def _share(effect: Effect) -> str:
    if effect.share is None:
        return "cannot be told"
    return f"{effect.share:.0%}" if effect.share < 0.995 else "> 99%"


def _means(effect: Effect, sign: int) -> str:
    ordered = sorted(effect.means.items(), key=lambda item: -(sign or -1) * item[1])
    shown = [f"{value or 'default'}: {number(mean)}" for value, mean in ordered[:6]]
    return ", ".join(shown) + (", ..." if len(ordered) > 6 else "")


def _missing_section(sweep: Sweep) -> str:
    parts = []
    for title, statuses in (
        ("Failed", ("failed", "killed")),
        ("Not finished", ("running", "stopped", "waiting")),
    ):
        rows = [
            (
                sweep.label(tuple(point.words.items())),
                point.status,
                f"{point.result.get('step') or point.history.step:,}",
                point.error or "",
                _link(point, "report") if point.folder else "",
            )
            for point in sweep.with_status(*statuses)
        ]
        if rows:
            text = table(rows, ("point", "", "step", "why", ""), numbers=False)
            parts.append(f"## {title}\n\n{text}")
    return "\n\n".join(parts)


def _again_section(sweep: Sweep) -> str:
    lines = list(_commands(sweep))
    return "\n".join(["## Go on", "", fenced("\n".join(lines))]) if lines else ""


def _commands(sweep: Sweep) -> Iterator[str]:
    if sweep.ranked:
        words = words_again(sweep.ranked[0].points[0].run)
        kept = [word for word in words if not word.startswith(("resume=", "seed="))]
        yield "# the best again, with another seed"
        yield " ".join(["python launch/main.py", *map(shlex.quote, kept), "seed=..."])
    if sweep.record and sweep.with_status("waiting", "stopped", "failed", "killed"):
        yield "# what is not finished"
        yield _resume(sweep)


def _resume(sweep: Sweep) -> str:
    return f"python launch/main.py {shlex.quote(f'resume={sweep.folder}')}"
