"""The words that would run a recorded experiment again, whatever has been run since."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LAST = re.compile(r"(^|[\[, '\"])last(:|[\], '\"]|$)")  # by itself, or one of a list


def words_again(run: Mapping[str, Any]) -> list[str]:
    """A run's words, with the checkpoint that it began with where they say `init_from=last`.

    By now `last` is another run, maybe this one.

    Args:
        run: what run.json holds.
    """
    words = [str(word) for word in run.get("overrides") or ()]
    checkpoint = (run.get("parent") or {}).get("checkpoint")
    if checkpoint is None:
        return words
    return [f"init_from={_quoted(checkpoint)}" if _names_last(word) else word for word in words]


def _names_last(word: str) -> bool:
    key, _, value = word.partition("=")
    return key == "init_from" and _LAST.search(value) is not None


def _quoted(path: str) -> str:
    """As Hydra's grammar wants it."""
    if re.fullmatch(r"[\w./-]+", path):
        return path
    return "'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'"
