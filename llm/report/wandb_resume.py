"""Continuing a W&B run so that it holds each step once, whatever happened to its earlier parts.

W&B gives every step one row and takes rows in order. `wandb sync` renumbers an offline part that
begins at a step which an earlier part has already; and what a killed process had not yet written
to its `.wandb` file (up to 32 KiB) is lost. So a continued run first asks what W&B has, brings the
rest of the past from metrics.jsonl, and leaves out what W&B has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]


class Rows:
    """Which row of W&B an event goes to.

    Args:
        last: the newest step that W&B has; None if it has none.
        resumed_at: steps that the checkpoint to go on from had done.
    """

    def __init__(self, last: int | None, resumed_at: int) -> None:
        self._last, self._resumed_at = last, resumed_at

    def row(self, step: int) -> int | None:
        """The row for what happens at `step` from now on; None if W&B has it."""
        if self._last is None or step > self._last:
            return step
        # A run may stop between a step and its evaluation. That step's row is closed for W&B.
        return step + 1 if step == self._last == self._resumed_at else None

    def missing(self, past: Iterable[Event]) -> list[tuple[int, dict[str, float]]]:
        """Steps and metrics of the past that W&B does not have.

        Args:
            past: events of metrics.jsonl, oldest first.
        """
        events = [event for event in past if self._last is None or event["step"] > self._last]
        left_out = ("step", "time")
        return [
            (event["step"], {k: v for k, v in event.items() if k not in left_out and v is not None})
            for event in events
        ]


def last_step_on_disk(folder: Path, run_id: str) -> int | None:
    """The newest step in the `.wandb` files of a run's earlier parts; None if there is none.

    Asks `wandb leet inspect`, as W&B has no other way to read such a file; about a second.

    Args:
        folder: the run folder.
        run_id: of the run in W&B.

    Raises:
        RuntimeError: W&B does not say.
    """
    # Names begin with the time. What an earlier part had, a later one does not repeat.
    parts = sorted((folder / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb"), reverse=True)
    for part in parts:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json"]
        # In the folder, since W&B writes logs to where it stands.
        done = subprocess.run(
            [*command, str(part)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        try:
            step = json.loads(done.stdout)["step"]
        except (ValueError, KeyError) as error:
            raise RuntimeError(f"wandb leet inspect {part}: {done.stderr[-200:]}") from error
        if step is not None:
            return int(step)
    return None
