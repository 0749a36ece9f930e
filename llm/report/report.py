"""report.md: one page about a run, made from the files in its folder alone.

Works for a folder in any state: finished, stopped, failed, running, or with nothing in it yet.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm.report.again import words_again
from llm.report.best import direction
from llm.report.history import History
from llm.report.json_files import read_json, write_atomic
from llm.report.lineage_report import lineage_section
from llm.report.markdown import duration, fenced, one_line, table
from llm.report.metrics_file import NAME
from llm.report.numbers import clock, number, si
from llm.report.plots import draw_curves
from llm.report.samples import first_and_last, printable

_LONGEST_SAMPLE = 6000  # characters of one samples file that go into the report
_QUIET_AFTER = 600  # seconds without an event after which "running" is in doubt


def write_report(folder: Path) -> Path:
    """Write report.md and curves.png into a run folder, replacing earlier ones.

    Args:
        folder: the run folder; missing or broken files in it are left out of the report.

    Returns:
        The path of report.md.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run folder")
    run, result = read_json(folder / "run.json"), read_json(folder / "result.json")
    history = History(folder / NAME)
    title = str(run.get("title") or folder.resolve().name)
    # Of a policy's tokens only some are trained on, more or fewer each time; steps are even.
    unit = "steps" if history.has_rewards else "tokens"
    drawn = draw_curves(history.curves(unit), folder / "curves.png", title, unit)
    sections = [
        f"# {title}",
        _status(result, history),
        table(_key_numbers(run, result, history), ("", "")),
        f"![loss, learning rate and throughput against {unit}](curves.png)" if drawn else "",
        _metrics_section(history),
        _ledger_section(result),
        *_sample_sections(folder),
        _origin_section(folder, run),
        lineage_section(folder),
    ]
    path = folder / "report.md"
    write_atomic(path, ("\n\n".join(filter(None, sections)) + "\n").encode("utf-8", "replace"))
    return path


def _status(result: Mapping[str, Any], history: History) -> str:
    if result:
        line = f"**{result.get('status', 'unknown')}** at step {result.get('step', 0):,}"
        if result.get("finished"):
            line += f", {result['finished']}"
        error = result.get("error")
        return f"{line}\n\n> {error['type']}: {one_line(error['message'])}" if error else line
    if not history.events:
        return "**nothing logged yet**"
    silent = time.time() - history.time
    line = f"**running** at step {history.step:,}, last event {clock(silent)} ago"
    if silent > _QUIET_AFTER:
        line += " (it may have been killed: there is no result.json)"
    return line


def _key_numbers(
    run: Mapping[str, Any], result: Mapping[str, Any], history: History
) -> Iterator[tuple[str, str]]:
    scores = history.scores
    for name, label in (
        ("eval/loss", "held-out loss"),
        ("eval/bits_per_byte", "bits per byte"),
        ("eval/exact_match", "answers equal to the data's"),
        ("eval/accuracy", "right answers, held out"),
        ("reward/mean", "reward"),
        ("train/loss", "training loss"),
    ):
        if name in scores.last:
            words = f"{number(history.first.get(name))} → {number(scores.last[name])}"
            if best := scores.best.get(name):
                words += f" (best {number(best['value'])} at step {best['step']:,})"
            yield label, words
    if history.events:
        yield "tokens", f"{history.tokens:,}"
    parameters = run.get("parameters") or result.get("parameters")
    if isinstance(parameters, int):
        yield "parameters", f"{parameters:,} ({si(parameters)})"
    ledger = result.get("ledger") or {}
    if ledger:
        yield "wall time", duration(sum(ledger.values()))
    rate = history.median("perf/tokens_per_second")
    if rate is not None:
        yield "tokens per second", f"{si(rate)} (median)"
    mfu = history.median("perf/mfu")
    if mfu is not None:
        yield "model FLOPs utilisation", f"{mfu:.1%} (median)"
    memory = scores.last.get("perf/memory_gib")
    if memory is not None:
        yield "memory", f"{memory:.2f} GiB"
    if compilations := result.get("compilations"):
        cached = compilations["from_cache"]
        words = f"{compilations['count']} in {duration(compilations['seconds'])}"
        yield "programs compiled", words + (f", {cached} of them from the cache" if cached else "")
    if run.get("devices"):
        yield "devices", ", ".join(map(str, run["devices"]))


def _metrics_section(history: History) -> str:
    """Every metric: first, last, best."""
    if not history.events:
        return ""
    rows = []
    for name in sorted(history.scores.last):
        best = history.scores.best.get(name) if direction(name) else None
        rows.append(
            (
                f"`{name}`",
                number(history.first.get(name)),
                number(history.scores.last[name]),
                f"{number(best['value'])} (step {best['step']:,})" if best else "",
            )
        )
    return "## Metrics\n\n" + table(iter(rows), ("metric", "first", "last", "best"))


def _ledger_section(result: Mapping[str, Any]) -> str:
    ledger: Mapping[str, float] = result.get("ledger") or {}
    total = sum(ledger.values())
    if not total:
        return ""
    rows = [(phase, duration(s), f"{s / total:.1%}") for phase, s in ledger.items()]
    return "## Where the time went\n\n" + table(iter(rows), ("phase", "time", "share"))


def _sample_sections(folder: Path) -> Iterator[str]:
    paths = first_and_last(folder)
    if paths:
        yield "## Samples"
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) > _LONGEST_SAMPLE:
            text = text[:_LONGEST_SAMPLE] + "\n..."
        yield f"`samples/{path.name}`\n\n{fenced(printable(text))}"


def _ancestor(parent: Mapping[str, Any]) -> str:
    """The words that name it, and what tells one from another of that name."""
    name = parent.get("checkpoint") or parent.get("source") or one_line(parent)
    marks = [f"{key} {str(parent[key])[:12]}" for key in ("revision", "sha256") if parent.get(key)]
    return f"`{name}`" + (f" ({', '.join(marks)})" if marks else "")


def _origin_section(folder: Path, run: Mapping[str, Any]) -> str:
    """What it takes to run it again."""
    lines = ["## Run it again", ""]
    git = run.get("git") or {}
    if git:
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        patch = (folder / "uncommitted.patch").exists()
        dirty += " (uncommitted.patch)" if dirty and patch else ""
        lines.append(f"- code: commit `{git.get('commit')}`{dirty}")
    if run.get("parent"):
        lines.append(f"- starts from: {_ancestor(run['parent'])}")
    for key in ("data", "tokenizer"):
        if run.get(key):
            lines.append(f"- {key}: `{one_line(run[key])}`")
    if run.get("python"):
        packages = run.get("packages") or {}
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        lines.append(f"- Python {run['python']}, {versions}")
    for resume in run.get("resumes") or ():
        lines.append(f"- resumed at step {resume.get('step', 0):,} ({resume.get('time')})")
    again = " ".join(["python launch/main.py", *map(shlex.quote, words_again(run))]) if run else ""
    commands = [again, f"python launch/main.py {shlex.quote(f'resume={folder}')}"]
    lines += ["", fenced("\n".join(filter(None, commands)))]
    return "\n".join(lines)
