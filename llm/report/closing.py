"""The closing panel: what came out, where it is, and what to do with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from llm.report.numbers import clock, number, si
from llm.report.wandb_tracker import WandbTracker

_COLOURS = {"finished": "green", "stopped": "yellow", "failed": "red"}
_SHOWN = (
    *("eval/loss", "eval/bits_per_byte", "eval/exact_match"),
    *("eval/accuracy", "reward/mean", "train/loss"),
)


def show_closing(
    folder: Path,
    *,
    title: str,
    result: Mapping[str, Any],
    report: Path | None,
    tracker: WandbTracker,
    next_commands: Sequence[str],
) -> None:
    """Print the panel on stdout.

    Args:
        folder: the run folder.
        title: the run's name.
        result: what result.json holds.
        report: report.md, if it could be written.
        tracker: tells where the W&B run is.
        next_commands: lines to copy, for instance to chat with the model; not shown if it failed.
            A run that is not finished gets one to resume it.
    """
    console = Console(highlight=False)
    status = str(result["status"])
    colour = _COLOURS.get(status, "")
    heading = Text.assemble((f"{title}: ", "bold"), (status, f"bold {colour}"))
    rows = list(_rows(folder, result, report, tracker))
    width = max(len(name) for name, _ in rows) + 2
    # No box around it and no wrapping: paths and commands are here to be copied.
    console.print(Rule(heading, style=colour, align="left"))
    for name, value in rows:
        console.print(Text.assemble((f"  {name:{width}}", "dim"), value), soft_wrap=True)
    commands = list(next_commands) if status != "failed" else []
    if status != "finished":
        commands.append(f"python launch/main.py {shlex.quote(f'resume={folder}')}")
    for i, line in enumerate(commands):
        label = "next" if i == 0 else ""
        console.print(Text.assemble((f"  {label:{width}}", "dim"), (line, "cyan")), soft_wrap=True)
    console.print(Rule(style=colour))


def _rows(
    folder: Path, result: Mapping[str, Any], report: Path | None, tracker: WandbTracker
) -> Iterable[tuple[str, str]]:
    if error := result.get("error"):
        yield "error", f"{error['type']}: {error['message']}"
    seconds = sum(result["ledger"].values())
    spent = f" in {clock(seconds)}" if seconds else ""
    yield "trained", f"{result['step']:,} steps, {si(result['tokens'])} tokens{spent}"
    for name in _SHOWN:
        if name in result["final"]:
            value = number(result["final"][name])
            best = result["best"].get(name)
            if best and best["value"] != result["final"][name]:
                value += f"   best {number(best['value'])} at step {best['step']:,}"
            yield name, value
    yield "run folder", str(folder)
    if report:
        yield "report", str(report)
        yield "curves", ", ".join(path.name for path in sorted(folder.glob("*.png"))) or "none"
    if tracker.url:
        yield "W&B", tracker.url
    elif tracker.directory:
        yield "look at it", f"wandb leet {shlex.quote(str(folder / 'wandb'))}"
