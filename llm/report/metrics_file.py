"""metrics.jsonl: one JSON object per log event, kept true across crashes and resumes.

A line is `{"step": 500, "tokens": 4096000, "time": 1790000000.123, "train/loss": 2.31, ...}`:
`step` optimizer steps and `tokens` tokens were done when it was logged, `time` is in seconds since
1970. A value that is not finite is null.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm.report.json_files import strict, write_atomic

NAME = "metrics.jsonl"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a metrics file, oldest first; lines that do not parse are skipped."""
    for event, _ in _lines(path):
        yield event


class MetricsFile:
    """Appends events, each flushed, so that a reader or a crash finds all but at most the last."""

    def __init__(self, folder: Path, keep_through: int | None):
        """Open `folder`/metrics.jsonl, first cutting off what the run is about to do again.

        Args:
            folder: the run folder; it must exist.
            keep_through: events of this step and before stay. A checkpoint of step k is written
                after the events of step k, so a run resumed from it passes k. None keeps nothing.
        """
        self.path = folder / NAME
        self.kept = _cut(self.path, keep_through)
        self._resume_step = keep_through
        self._names_at_resume = {
            name for event in self.kept if event["step"] == keep_through for name in event
        }
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, step: int, tokens: int, metrics: Mapping[str, float]) -> bool:
        """Write one event.

        A loop that resumes at step k may evaluate at k a second time. That event is in the file
        already, so it is left out.

        Returns:
            Whether the event was new.
        """
        if step == self._resume_step and self._names_at_resume.issuperset(metrics):
            return False
        head = {"step": int(step), "tokens": int(tokens), "time": round(time.time(), 3)}
        event = {**head, **strict(metrics)}
        self._file.write(json.dumps(event, allow_nan=False) + "\n")
        self._file.flush()
        return True

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()


def _cut(path: Path, keep_through: int | None) -> list[dict[str, Any]]:
    """Drop later and broken lines from the file; return the events that stay."""
    kept, raw = [], []
    if keep_through is not None:
        for event, line in _lines(path):
            if event["step"] <= keep_through:
                kept.append(event)
                raw.append(line + b"\n")
    if path.exists():
        write_atomic(path, b"".join(raw))
    return kept


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Events with the bytes they were read from. A process that dies may leave half a line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("step"), int):
                yield event, line.rstrip(b"\r\n")
