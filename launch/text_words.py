"""Words whose value is a text: it means what it says, whatever Hydra's grammar would make of it."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString


def taken_literally(words: Sequence[str], key: str) -> list[str]:
    """The words, with the value of `key` quoted: `prompt=def main(` or `prompt=a, b` is a text.

    A value that stands in quotes already is left to Hydra.
    """
    return [_quoted(word) if word.startswith(f"{key}=") else word for word in words]


def paths_quoted(words: Sequence[str]) -> list[str]:
    """The words, with values quoted that name something on this disk and look like grammar.

    The folder of a sweep's point has = and , in its name.
    """
    return [_quoted(word) if _names_a_path(word) else word for word in words]


def _names_a_path(word: str) -> bool:
    key, _, value = word.partition("=")
    # What `resume` names is looked at before Hydra sees it.
    plain = not value or key.startswith("-") or key == "resume" or re.fullmatch(r"[\w./~-]+", value)
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, no such user, a NUL
        return not plain and Path(value).expanduser().exists()
    return False


def with_text(key: str, program: Callable[[], None]) -> Callable[[], None]:
    """The program, with the value of `key` on its command line taken literally."""

    def run() -> None:
        sys.argv[1:] = taken_literally(sys.argv[1:], key)
        program()

    return run


def _quoted(word: str) -> str:
    key, _, text = word.partition("=")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return word
    text = text.replace("${", "\\${")  # no reference to another key
    return f"{key}={QuotedString(text, Quote.double).with_quotes()}"
