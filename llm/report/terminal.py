"""The terminal: one rich console that log lines and the progress display share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from loguru import logger
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from loguru import Message

# On stderr, as logs are: stdout belongs to what a command produces (generated text, a result).
console = Console(stderr=True, highlight=False)
_configured: list[int] = []
_default_handler = [0]  # the number loguru gives to the handler that it starts with


def setup_logging(level: str = "INFO", prefix: str = "") -> None:
    """Route loguru through the shared console, in one tidy format; for entry points.

    Safe to call again, for instance by each job of a sweep. Handlers that were added before,
    loguru's own included, are removed at the first call.

    Args:
        level: the least severe level that is shown.
        prefix: stands before each message, such as which of several processes it is from.
    """
    if _configured:
        logger.remove(_configured.pop())
    else:
        logger.remove()
    _configured.append(_add_console(level, prefix))


@contextmanager
def logs_above_display() -> Iterator[None]:
    """While the block runs, loguru's default handler does not write through a live display.

    For library use. After `setup_logging` there is nothing to do.
    """
    replaced = None
    if not _configured:
        with suppress(ValueError):  # no default handler: the caller has set up something else
            logger.remove(_default_handler[0])
            replaced = _add_console("INFO")
    try:
        yield
    finally:
        if replaced is not None:
            with suppress(ValueError):
                logger.remove(replaced)
            _default_handler[0] = logger.add(sys.stderr)


def _add_console(level: str, prefix: str = "") -> int:
    def form(record: object) -> str:
        """Only the message and a traceback if there is one: `_print` adds the rest."""
        return prefix + "{message}\n{exception}"

    return logger.add(_print, level=level, format=form, colorize=False, backtrace=False)


def _print(message: Message) -> None:
    record = message.record
    level = record["level"].name
    style = {"WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}.get(level, "")
    line = Text.assemble((f"{record['time']:HH:mm:ss} ", "dim"))
    if style:
        line.append(f"{level.lower()}: ", style)
    line.append(str(message).rstrip("\n"), "dim" if level in ("DEBUG", "TRACE") else "")
    # Long lines wrap in a terminal; in a file they stay whole, for grep.
    console.print(line, soft_wrap=not console.is_terminal)
