"""Compiling a step ahead of its first run, once per shape of batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from llm.report.ledger import Ledger
from llm.train.stopping import StopSignal


class Compiled:
    """A jitted function whose compilations are timed, and left behind when the run is stopped."""

    def __init__(self, function: Callable[..., Any], stop: StopSignal, ledger: Ledger) -> None:
        """Wrap `function`, which must come from `jax.jit`."""
        self._function = function
        self._stop = stop
        self._ledger = ledger
        self._programs: dict[Any, Any] = {}

    @property
    def programs(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)

    def __call__(self, *args: Any) -> Any:
        """Run; the last argument decides by its shapes which program, and may need a new one.

        Raises:
            StopRequestedError: a stop was asked for while compiling. Nothing was run or donated.
        """
        shapes = tuple(x.shape for x in jax.tree.leaves(args[-1]))
        program = self._programs.get(shapes)
        if program is None:
            with self._ledger("compile"):
                program = self._stop.wait_for(lambda: self._function.lower(*args).compile())
            self._programs[shapes] = program
        return program(*args)
