"""May this experiment use that folder? Runs are never written over, and never change on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError, spec_from_json
from llm.train.experiment import ExperimentSpec
from llm.train.meaning_of_last import with_meaning

# What may differ between a run and its continuation: it does not change what is computed.
_FREE = (
    *("resume", "plan", "profile", "objective", "hardware", "tracker", "checkpoint"),
    *("data.workers", "data.cache_dir"),
)


def check_run_folder(experiment: ExperimentSpec, folder: Path) -> None:
    """Refuse to write over a run, or to continue one with another experiment.

    Raises:
        RefusedError: with what to do instead.
    """
    odd = sorted(set(str(folder.absolute())) & set("[]*?\\"))
    if odd:
        raise RefusedError(
            f"{folder}: checkpoints in a folder with {' '.join(odd)} in its path cannot be read "
            "again; choose another (hydra.run.dir)"
        )
    record = folder / "run.json"
    if not record.exists():
        if experiment.first_weights is not None:
            from llm.hub.sources import check_source

            check_source(experiment.first_weights, "init_from")
        return
    if not experiment.resumes:
        raise RefusedError(
            f"{folder}: holds a run already; continue it with resume={folder} or choose another "
            "folder (hydra.run.dir)"
        )
    # By way of a spec: an older run has not heard of keys that are newer than it.
    begun = json.loads(record.read_text(encoding="utf-8"))
    before = spec_from_json(begun["specs"]).to_json()
    now = with_meaning(experiment, begun.get("last", {})).to_json()
    steps, least = now["trainer"]["steps"], max(before["trainer"]["steps"], _steps_done(folder))
    if steps < least:
        raise RefusedError(
            f"trainer.steps={steps}: the run in {folder} has {least} of them; they may grow but "
            "not shrink"
        )
    before, now = (defining(config, free=["trainer.steps"]) for config in (before, now))
    difference = _first_difference(before, now, "")
    if difference:
        key, old, new = difference
        raise RefusedError(
            f"{key}={new}: the run in {folder} was started with {key}={old}; a continued run "
            "keeps its configuration (start a new one, with init_from if you want its weights)"
        )


def defining(specs: dict[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """The part of an experiment's specs that decides what is computed.

    Args:
        specs: `ExperimentSpec.to_json()`.
        free: further keys to leave out.
    """
    kept = {k: dict(v) if isinstance(v, dict) else v for k, v in specs.items()}
    for key in (*free, *_FREE):
        part, _, leaf = key.rpartition(".")
        (kept[part] if part else kept).pop(leaf)
    return kept


def _steps_done(folder: Path) -> int:
    """Steps of the newest checkpoint: a continued run may have gone beyond its first plan."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _first_difference(old: Any, new: Any, path: str) -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            inner = f"{path}.{key}" if path else key
            found = _first_difference(old.get(key), new.get(key), inner)
            if found:
                return found
        return None
    return None if old == new else (path, old, new)
