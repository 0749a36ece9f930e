"""The figures as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm.report.numbers import number

_QUIET = ("/loss", "/perplexity")  # of single sources: bits per byte say it


def show(console: Console, record: Mapping[str, Any]) -> None:
    """A row for each figure, a column for each checkpoint."""
    results = record["checkpoints"]
    table = Table("", box=None, header_style="bold", pad_edge=False)
    for one in results:
        # Text: of a plain string, rich would take what is in brackets for markup.
        table.add_column(Text(one["checkpoint"]), justify="right", overflow="fold")
    names = dict.fromkeys(name for one in results for name in one["metrics"])
    for name in names:
        if name.count("/") > 1 and name.endswith(_QUIET):
            continue
        table.add_row(Text(name), *(number(one["metrics"].get(name)) for one in results))
    console.print(table)
