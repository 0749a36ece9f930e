"""samples/completions-000050.parquet and .md: what was sampled at a step, and what it was worth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.report.json_files import write_atomic
from llm.report.samples import printable

_SHOWN = 32  # rows of the page for people
_LONGEST = 600  # characters of a cell there


def write_completions(folder: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write one table twice: all of it for programs, its first rows for people.

    Args:
        folder: the run folder.
        step: optimizer steps done when these were sampled.
        rows: of the table, all with the same columns.

    Returns:
        The Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    path = folder / "samples" / f"completions-{step:06d}.parquet"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    clean = [{k: _whole(v) for k, v in row.items()} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(clean), temporary)
    temporary.rename(path)
    columns = list(rows[0])
    lines = [
        f"Step {step}: {min(len(rows), _SHOWN)} of {len(rows)} answers.",
        "",
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join("---" for _ in columns) + " |",
        *("| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in rows[:_SHOWN]),
    ]
    page = "\n".join(lines) + "\n"
    write_atomic(path.with_suffix(".md"), page.encode("utf-8", "replace"))
    return path


def _whole(value: Any) -> Any:
    """Text that UTF-8 can hold: a model may write half of a surrogate pair."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = printable(str(value))
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return text.replace("|", "\\|").replace("\n", "<br>")
