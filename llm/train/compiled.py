"""Compiling a step ahead of its first run, once per shape of batch."""

from __future__ import annotations

from typing import Any

import jax

from llm.report.ledger import Ledger
from llm.train.stopping import StopSignal


class Compiled:
    """A jitted function whose compilations are timed, and left behind when the run is stopped."""

    def __init__(self, function: jax.stages.Wrapped, stop: StopSignal, ledger: Ledger) -> None:
        """Wrap `function`, which must come from `jax.jit`."""
        self._function = function
        self._stop = stop
        self._ledger = ledger
        self._programs: dict[Any, Any] = {}

    def ready(self, *args: Any) -> bool:
        """Is there a program for the shapes of what comes after the first argument?"""
        return _shapes(args[1:]) in self._programs

    def compile(self, *args: Any) -> None:
        """Make the program for these arguments.

        Raises:
            StopRequestedError: a stop was asked for meanwhile.
        """
        with self._ledger("compile"):
            program = self._stop.wait_for(lambda: self._function.lower(*args).compile())
        self._programs[_shapes(args[1:])] = program

    def __call__(self, *args: Any) -> Any:
        """Run; the shapes after the first argument decide which program, and may need a new one.

        Raises:
            StopRequestedError: a stop was asked for while compiling. Nothing was run or donated.
        """
        if not self.ready(*args):
            self.compile(*args)
        return self._programs[_shapes(args[1:])](*args)


def _shapes(arrays: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(x.shape for x in jax.tree.leaves(arrays))
