"""Stopping on SIGTERM or Ctrl-C without losing work.

The first signal only sets a flag, which the loop looks at between steps, evaluation batches and
samples. The one thing too long to wait for is a compilation; it runs on a thread of its own
(`wait_for`), so that the main thread can leave it behind. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from llm.core.hosts import SharedFlag

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequestedError(Exception):
    """Raised where work is left behind because a stop was asked for."""


class StopSignal:
    """Catches SIGTERM and Ctrl-C while it is open."""

    def __init__(self, then: Callable[[int], None] | None = None) -> None:
        """Catch nothing yet.

        Args:
            then: what else is done at the first signal, whose number it is given.
        """
        self._then = then
        self._requested = threading.Event()
        self._previous: dict[int, Any] = {}
        self._shared: SharedFlag | None = None
        self.left_behind = False
        """A compilation was left running; the interpreter cannot end normally before it does."""

    def __enter__(self) -> StopSignal:
        # Python lets only the main thread install handlers; elsewhere (a notebook's or a sweep
        # launcher's thread) signals keep doing what they did.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def share(self, mesh: Mesh) -> None:
        """From now on the processes of a run stop together, whichever of them is asked to.

        They all must ask at the same places then.
        """
        from llm.core.hosts import SharedFlag

        self._shared = SharedFlag(mesh)

    def __call__(self) -> bool:
        """Was a stop asked for?"""
        requested = self._requested.is_set()
        return self._shared(requested) if self._shared else requested

    def request(self) -> None:
        """Ask for a stop from within the program."""
        self._requested.set()

    def ignore(self) -> None:
        """From now on signals do nothing, also after this object is closed."""
        if self._previous:
            self._previous = dict.fromkeys(self._previous, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        # os.write, not logging: a logger's lock may be held by the code we interrupted.
        if self._requested.is_set():
            os.write(2, b"\nSecond signal: quitting at once.\n")
            os._exit(128 + number)
        self._requested.set()
        if self._then is not None:
            self._then(number)
        os.write(2, b"\nStopping: saving a checkpoint first. Once more quits at once.\n")

    def wait_for(self, work: Callable[[], T]) -> T:
        """Run `work` on a thread and return its result, or leave it behind when asked to stop.

        Several processes do not leave it: they would not do so at the same moment.

        Raises:
            StopRequestedError: a stop was asked for before `work` was done.
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                result.append(work())
            except BaseException as error:
                failure.append(error)

        if self._shared:
            return work()
        thread = threading.Thread(target=run, daemon=True, name="compile")
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if self() and thread.is_alive():
                self.left_behind = True
                raise StopRequestedError
        if failure:
            raise failure[0]
        return result[0]
