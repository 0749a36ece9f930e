"""The time ledger: where the wall clock of a run went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Ledger:
    """Seconds per phase. Every second belongs to exactly one phase, so the totals add up.

    Time inside `with ledger("eval"):` goes to "eval". A phase opened inside another one is taken
    out of the outer one. Time outside any phase goes to `rest`. For one thread.
    """

    def __init__(self, rest: str = "other", clock: Callable[[], float] = time.perf_counter):
        """Start the clock.

        Args:
            rest: the phase for time that no `with` claims.
            clock: returns seconds, never going back.
        """
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._open = [rest]
        self._since = clock()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Charge the time of the block to `phase`, also when the block raises."""
        self._charge()
        self._open.append(phase)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def move(self, source: str, to: str, seconds: float) -> None:
        """Charge `seconds` that were charged to one phase to another, which was part of it."""
        self._charge()
        for phase, change in ((source, -seconds), (to, seconds)):
            self._seconds[phase] = self._seconds.get(phase, 0.0) + change

    def totals(self) -> dict[str, float]:
        """Seconds per phase so far, longest first; their sum is the age of the ledger."""
        self._charge()
        return dict(sorted(self._seconds.items(), key=lambda item: -item[1]))

    def _charge(self) -> None:
        """Give the time since the last event to the phase that is open now."""
        now = self._clock()
        phase = self._open[-1]
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now
