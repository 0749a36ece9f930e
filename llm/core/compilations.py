"""How many programs XLA compiles, and how long that takes."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from jax import monitoring

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


class Compilations:
    """Counts those of this process, whatever thread they are on, from entering to leaving.

    A program that is taken from the cache of compiled ones counts too, with the time that took.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []  # `append` is safe from any thread
        self._hits: list[str] = []

    @property
    def count(self) -> int:
        """Programs so far."""
        return len(self._seconds)

    @property
    def seconds(self) -> float:
        """Of them all; they may have been compiled at the same time."""
        return sum(self._seconds)

    def to_json(self) -> dict[str, float]:
        """The figures so far."""
        return {
            "count": self.count,
            "seconds": round(self.seconds, 3),
            "from_cache": len(self._hits),
        }

    def __enter__(self) -> Compilations:
        monitoring.register_event_duration_secs_listener(self._took)
        monitoring.register_event_listener(self._happened)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        monitoring.unregister_event_duration_listener(self._took)
        monitoring.unregister_event_listener(self._happened)

    def _took(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            self._seconds.append(duration_secs)

    def _happened(self, event: str, **_: Any) -> None:
        if event == _FROM_CACHE:
            self._hits.append(event)
