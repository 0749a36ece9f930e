"""Tokenizers side by side: a table for the terminal, one for report.md, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm.data.tokenizer import Tokenizer
from llm.data.tokenizer_quality import Quality
from llm.data.unicode_stress import STRESS

_OURS, _THEIRS, _INK, _QUIET = "#2563a8", "#b0b7be", "#24292f", "#6e7781"
_EXCERPT = 160  # characters


@dataclass(frozen=True)
class Measured:
    """One tokenizer of the table."""

    name: str
    quality: Quality
    excerpt: str
    """The beginning of a text, cut as it cuts it."""


_COLUMNS: tuple[tuple[str, Callable[[Quality], str]], ...] = (
    ("tokens", lambda q: f"{q.vocab_size:,}"),
    ("bytes/\ntoken", lambda q: f"{q.bytes_per_token:.3f}"),
    ("tokens/\nword", lambda q: f"{q.fertility:.3f}"),
    ("whole\nwords", lambda q: f"{q.whole_words:.1%}"),
    ("tokens\nused", lambda q: f"{q.vocabulary_used:.1%}"),
    ("Rényi\nefficiency", lambda q: f"{q.renyi_efficiency:.3f}"),
    ("unknown\ntokens", lambda q: f"{q.unknown:,}"),
    ("texts\nchanged", lambda q: f"{q.texts_changed:.1%}"),
    ("stress\nkept", lambda q: f"{len(STRESS) - len(q.stress_lost)}/{len(STRESS)}"),
    ("MB/s", lambda q: f"{q.megabytes_per_second:.1f}"),
)
_LEGEND = """\
Held-out text: {bytes:,} bytes. *bytes/token*: more is shorter. *tokens/word* (fertility) and *whole
words*: of stretches between white space. *tokens used*: those that occur in this text, so fewer
of a shorter one. *Rényi efficiency*: of order 2.5 (Zouhar et al. 2023). *texts changed*: documents
that do not come back as they went in. *MB/s*: of encoding, on this machine."""


def excerpt(tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> str:
    """The beginning of the first text, with a bar between its tokens."""
    text = next(text for of_one in texts.values() for text in of_one if text.strip())
    text = text.lstrip()[:_EXCERPT].rstrip()
    starts = {start for start, _ in tokenizer.encode_with_spans(text)[1]} - {0}
    return "".join(f"|{c}" if i in starts else c for i, c in enumerate(text))


def show(console: Console, measured: Sequence[Measured]) -> None:
    """Write the table, and what each tokenizer loses."""
    table = Table("\ntokenizer", box=None, header_style="bold", pad_edge=False)
    for name, _ in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for one, style in zip(measured, ["bold", *[""] * len(measured)], strict=False):
        table.add_row(Text(one.name), *(form(one.quality) for _, form in _COLUMNS), style=style)
    width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    # Wider than the terminal rather than cut off.
    Console(file=console.file, width=max(width, console.width), highlight=False).print(table)
    for one in measured:
        if one.quality.stress_lost:
            lost = ", ".join(one.quality.stress_lost)
            console.print(Text(f"{one.name} does not give back: {lost}"), soft_wrap=True)


def markdown(title: str, measured: Sequence[Measured], training: Mapping[str, Any]) -> str:
    """report.md: the table, the picture, and how each tokenizer cuts the same text."""
    names = ["tokenizer", *(name.replace("\n", " ") for name, _ in _COLUMNS)]
    lines = [
        f"# {title}",
        f"Trained on {training['characters']:,} characters in {training['seconds']:.1f} s.",
        "| " + " | ".join(names) + " |\n|" + " --- |" * len(names),
    ]
    for one in measured:
        cells = [one.name, *(form(one.quality) for _, form in _COLUMNS)]
        lines[-1] += "\n| " + " | ".join(cells) + " |"
    lines += [_LEGEND.format(bytes=measured[0].quality.bytes), "![](tokenizer.png)"]
    sources = list(measured[0].quality.bytes_per_token_by_source)
    if len(sources) > 1:
        table = "| bytes/token | " + " | ".join(sources) + " |\n|" + " --- |" * (len(sources) + 1)
        for one in measured:
            values = one.quality.bytes_per_token_by_source.values()
            table += f"\n| {one.name} | " + " | ".join(f"{v:.3f}" for v in values) + " |"
        lines.append(table)
    for one in measured:
        if one.quality.stress_lost:
            lines.append(f"{one.name} does not give back: {', '.join(one.quality.stress_lost)}.")
    for one in measured:
        indented = "\n".join(f"    {line}" for line in one.excerpt.splitlines())
        lines.append(f"{one.name} cuts text so:\n\n{indented}")
    return "\n\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Panel:
    title: str
    value: Callable[[Quality], float]
    form: str
    whole: float | None = None
    """Where the axis ends; None: after the longest bar."""


_PANELS = (
    _Panel("bytes per token", lambda q: q.bytes_per_token, "{:.2f}"),
    _Panel("tokens per word", lambda q: q.fertility, "{:.2f}"),
    _Panel("vocabulary used", lambda q: q.vocabulary_used, "{:.0%}", 1.0),
    _Panel("stress texts kept", lambda q: 1 - len(q.stress_lost) / len(STRESS), "{:.0%}", 1.0),
)


def draw(measured: Sequence[Measured], path: Path, title: str) -> None:
    """A row of bars per tokenizer, the new one in colour; dots are the sources of a mixture."""
    rows = len(measured)
    figure = Figure(figsize=(11, 1.6 + 0.42 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(_PANELS), sharey=True, width_ratios=[1.5, 1.5, 1, 1])
    colours = [_OURS, *[_THEIRS] * (rows - 1)]
    for axes, panel in zip(grid, _PANELS, strict=True):
        values = [panel.value(one.quality) for one in measured]
        axes.barh(range(rows), values, 0.62, color=colours)
        end = panel.whole or max(values)
        for place, (value, one) in enumerate(zip(values, measured, strict=True)):
            dots = one.quality.bytes_per_token_by_source.values() if axes is grid[0] else ()
            axes.text(
                max(value, *dots, 0) + end * 0.03,
                place,
                panel.form.format(value),
                va="center",
                fontsize=9,
            )
        axes.set_xlim(0, end * 1.25)
        axes.set_title(panel.title, loc="left", fontsize=10, color=_INK)
        axes.tick_params(length=0, labelcolor=_QUIET)
        axes.set_xticks([])
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
    names = [f"{one.name}\n{one.quality.vocab_size:,} tokens" for one in measured]
    grid[0].set_yticks(range(rows), names, fontsize=9, color=_INK)
    grid[0].invert_yaxis()
    _mark_sources(grid[0], measured)
    figure.suptitle(f"{title}: held-out text", x=0.01, ha="left", color=_INK)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png")
    temporary.rename(path)


def _mark_sources(axes: Any, measured: Sequence[Measured]) -> None:
    sources = list(measured[0].quality.bytes_per_token_by_source)
    if len(sources) < 2:
        return
    for source, marker in zip(sources, "os^Dv<>p" * len(sources), strict=False):
        values = [one.quality.bytes_per_token_by_source[source] for one in measured]
        axes.plot(
            values, range(len(measured)), marker, color=_INK, markersize=4, label=source, zorder=3
        )
    most = max(v for one in measured for v in one.quality.bytes_per_token_by_source.values())
    axes.set_xlim(0, most * 1.25)
    axes.figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=9)
