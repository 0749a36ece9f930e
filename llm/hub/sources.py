"""What `checkpoint=` and `init_from=` may name, and where that lies."""

from __future__ import annotations

import json
import os
from pathlib import Path

from llm.core.spec import RefusedError
from llm.hub.checkpoints import checkpoint_folder

OUTPUTS = Path("outputs")


def find_checkpoint(source: str, key: str = "checkpoint") -> Path:
    """The folder of the checkpoint that `source` names.

    Args:
        source: a run folder or one checkpoint in it; `last`, the newest run that has one; or
            `last:NAME`, the newest of one trainer.
        key: what the user set to `source`, for messages.

    Raises:
        RefusedError: there is none.
    """
    word, _, trainer = source.partition(":")
    if word == "last":
        for run in reversed(runs(trainer or None)):
            try:
                return checkpoint_folder(run)
            except RefusedError:
                continue
        what = f"of trainer {trainer} " if trainer else ""
        raise RefusedError(f"{key}={source}: no run {what}with a checkpoint in {OUTPUTS}/")
    folder = Path(source).expanduser()
    if not source or not folder.is_dir():
        raise RefusedError(
            f"{key}={source}: no such folder; expected a run folder, a checkpoint in it, last or "
            "last:TRAINER"
        )
    return checkpoint_folder(folder)


def runs(trainer: str | None = None) -> list[Path]:
    """Run folders below outputs/, however deep, oldest first, optionally those of one trainer."""
    found = []
    for path, subfolders, files in os.walk(OUTPUTS):
        if "run.json" not in files:
            continue
        subfolders.clear()  # a run's own folders hold no runs
        try:
            run = json.loads((Path(path) / "run.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        if trainer in (None, run.get("specs", {}).get("trainer", {}).get("name")):
            found.append((run.get("created", ""), Path(path)))
    return [folder for _, folder in sorted(found)]
