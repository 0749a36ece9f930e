"""A training example as it is trained: which of its tokens are to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from llm.report.samples import printable
from llm.report.terminal import console

_LONGEST = 2000  # characters of an example
_OPEN, _CLOSE = "⟦", "⟧"


def preview(pieces: Sequence[tuple[str, bool]]) -> Text:
    """Text in which what is trained stands out: green on a terminal, in brackets elsewhere too.

    Args:
        pieces: text of each token, or of some together, and whether it is trained.
    """
    body = Text()
    for trained, group in groupby(pieces, key=lambda piece: piece[1]):
        text = printable("".join(text for text, _ in group))
        if trained:
            body.append(_OPEN + text + _CLOSE, "bold green")
        else:
            body.append(text, "dim")
    body.truncate(_LONGEST, overflow="ellipsis")
    return body


def show_example(number: int, pieces: Sequence[tuple[str, bool]]) -> None:
    """Print a preview above the progress line, see `preview`."""
    console.print(Text(f"example {number}: what is trained is {_OPEN}bracketed{_CLOSE}", "bold"))
    console.print(preview(pieces))
