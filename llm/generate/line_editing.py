"""Line editing at a terminal: arrow keys, a history that outlives the program, completion."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_LINES = 1000


@contextmanager
def line_editing(words: Sequence[str]) -> Iterator[None]:
    """While this is open, `input` edits lines.

    The history is in the user's state folder, readable by nobody else. Where there is no
    `readline` (Windows), or the folder cannot be written, lines come without.

    Args:
        words: what the tab key completes at the beginning of a line.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    file = history_file()

    def complete(text: str, number: int) -> str | None:
        fitting = [f"{word} " for word in words if word.startswith(text)]
        return fitting[number] if number < len(fitting) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \n")
    readline.parse_and_bind("tab: complete")
    readline.set_auto_history(True)
    with suppress(OSError):
        readline.read_history_file(file)
    known = readline.get_current_history_length()
    try:
        yield
    finally:
        readline.set_completer(None)
        new = readline.get_current_history_length() - known
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_APPEND, 0o600))
            # Appended: another chat may have written since.
            readline.set_history_length(_LINES)
            readline.append_history_file(new, file)


def history_file() -> Path:
    """Where lines are kept: $XDG_STATE_HOME, or what stands in for it."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "lernaean" / "chat_history"
