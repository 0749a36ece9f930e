"""Looking on while answers are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Watch:
    """What is told of one call of `Engine.generate`: times and counts so far."""

    on_change: Callable[[Watch], None] | None = None
    """Called after every few tokens."""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    tokens: int = 0
    """Written."""
    done: int = 0
    """Answers that are whole."""
    total: int = 0

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        """Add the time of the block to that of prompts."""
        begin = time.perf_counter()
        yield
        self.prefill_seconds += time.perf_counter() - begin

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Add the time of the block to that of new tokens."""
        begin = time.perf_counter()
        yield
        self.decode_seconds += time.perf_counter() - begin

    def changed(self, new_tokens: int, done: int) -> None:
        """Take in what a call has written."""
        self.tokens += new_tokens
        self.done = done
        if self.on_change is not None:
            self.on_change(self)
