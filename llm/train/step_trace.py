"""A trace of a few steps: what ran when, on the host and on the devices."""

from __future__ import annotations

from pathlib import Path

import jax
from loguru import logger

_FIRST, _LAST = 3, 5  # of this process: by then all is compiled and warm


class StepTrace:
    """Records the third to fifth step of a process by JAX's profiler.

    Args:
        folder: of the trace; None records nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._begun = 0
        self._open = False

    def turn(self) -> bool:
        """Whether recording begins or ends before the step that comes next: `switch` does so."""
        self._begun += self._folder is not None
        return self._begun in (_FIRST, _LAST + 1)

    def switch(self) -> None:
        """Begin, or end and write."""
        if self._open:
            self.close()
        else:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._open = True

    def close(self) -> None:
        """Write what has been recorded, if anything was."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
            steps = min(self._begun, _LAST) - _FIRST + 1
            logger.info(
                "A trace of {} steps is in {}: https://ui.perfetto.dev opens its "
                "perfetto_trace.json.gz, XProf the folder.", steps, self._folder,
            )  # fmt: skip
        elif self._folder is not None and self._begun < _FIRST:
            logger.warning(
                "profile=true: the run ended before step {}, where a trace begins.", _FIRST
            )
