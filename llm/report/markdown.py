"""The little Markdown that reports are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llm.report.numbers import clock


def duration(seconds: float) -> str:
    """A time as people read it."""
    return clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def table(
    rows: Iterable[tuple[str, ...]], header: tuple[str, ...], *, numbers: bool | None = None
) -> str:
    """A table; nothing if there are no rows.

    Args:
        rows: cells, as many as the header has.
        header: titles of the columns.
        numbers: all columns but the first hold numbers; by default if there are more than two.
    """
    body = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    if not body:
        return ""
    right = len(header) > 2 if numbers is None else numbers
    align = ["---", *["---:" if right else "---"] * (len(header) - 1)]
    return "\n".join(f"| {line} |" for line in (" | ".join(header), " | ".join(align), *body))


def fenced(text: str) -> str:
    """A code block that the text, whatever a model wrote, cannot end."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def one_line(value: Any) -> str:
    """Its text without line breaks."""
    return " ".join(str(value).split())
