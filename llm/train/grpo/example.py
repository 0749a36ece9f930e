"""What a reward is told about a prompt, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """A prompt and what is known about it: plain data that can be pickled.

    Args:
        messages: the prompt as chat messages, each with `role` and `content`.
        answer: the data's own answer, if it has one.
        fields: the record that the prompt was read from, such as
            `{"task": "addition", "number": 17}`.
    """

    messages: tuple[Mapping[str, Any], ...]
    answer: str | None
    fields: Mapping[str, Any]


Reward = Callable[[str, Example], float | None]
"""Judges a completion. None: it does not apply to this example."""

Outcome = float | str | None
"""What comes of calling it: a reward, or why there is none, or None if it does not apply."""
