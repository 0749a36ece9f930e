"""run.json and result.json: what a run is, and what came of it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from llm.report.json_files import read_json, write_atomic, write_json

_PACKAGES = (
    "lernaean", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    "tokenizers", "datasets", "hydra-core", "wandb",
)  # fmt: skip
_LARGEST_PATCH = 1_000_000  # bytes


def now() -> str:
    """The time, as ISO 8601 in UTC with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_run(
    folder: Path,
    *,
    title: str,
    specs: Mapping[str, Any],
    overrides: Sequence[str] = (),
    devices: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    parent: Mapping[str, Any] | None = None,
    tracker_id: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Write `folder`/run.json for a new run.

    Uncommitted changes of the code are saved beside it as uncommitted.patch (up to 1 MB), so that
    the commit and the patch together are the code that ran.

    Args:
        folder: the run folder; it must exist.
        title: one line that names the run, for people.
        specs: the specs as JSON data (`Spec.to_json`).
        overrides: the words of the command line that chose this configuration.
        devices: the devices in words, for instance ["NVIDIA H100 80GB HBM3"].
        data, tokenizer: fingerprints of the data and the tokenizer.
        parent: the checkpoint the run started from, if any.
        tracker_id: the W&B run id.
        more: further entries, for instance parameters=124_000_000.

    Returns:
        The record as written.
    """
    record = {
        "title": title,
        "created": now(),
        "specs": specs,
        "overrides": list(overrides),
        "parent": parent,
        "data": data,
        "tokenizer": tokenizer,
        "tracker_id": tracker_id,
        **more,
        **_circumstances(devices),
    }
    write_json(folder / "run.json", record)
    _save_patch(folder)
    return record


def note_resume(folder: Path, *, step: int, devices: Sequence[str] = (), **more: Any) -> None:
    """Add to run.json that the run goes on from `step`, and with which code and machine.

    The first record stays as it is: what started the run is not what continued it.
    """
    record = read_json(folder / "run.json")
    resumes = list(record.get("resumes") or [])
    resumes.append({"time": now(), "step": step, **more, **_circumstances(devices)})
    write_json(folder / "run.json", {**record, "resumes": resumes})


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit and dirty flag of the repository that holds this code; None outside git.

    Args:
        folder: look here instead of at this code's own folder.

    Returns:
        {"commit": full hash, "branch": name or "HEAD", "dirty": tracked files differ from it}.
    """
    here = Path(__file__)
    if folder is None:
        # A wheel in the virtual environment of some other repository is not that repository's code.
        if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
            return None
        folder = here.parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    return {
        "commit": commit.strip(),
        "branch": (branch or "HEAD").strip(),
        "dirty": bool(status and status.strip()),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on; those not installed are left out."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_result(
    folder: Path,
    *,
    status: str,
    step: int,
    tokens: int,
    started: str,
    final: Mapping[str, float | None],
    best: Mapping[str, Mapping[str, Any]],
    ledger: Mapping[str, float],
    error: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Write `folder`/result.json.

    Args:
        folder: the run folder; it must exist.
        status: finished, stopped or failed.
        step, tokens: how far the run came.
        started: when this process started the run (ISO 8601).
        final: last value of every metric.
        best: {"eval/loss": {"value": 2.31, "step": 500}, ...}.
        ledger: seconds per phase of this process.
        error: {"type", "message"} if something went wrong.
        more: further entries.

    Returns:
        The record as written.
    """
    record = {
        "status": status,
        "step": step,
        "tokens": tokens,
        "started": started,
        "finished": now(),
        "final": final,
        "best": best,
        "ledger": {phase: round(seconds, 3) for phase, seconds in ledger.items()},
        "error": error,
        **more,
    }
    write_json(folder / "result.json", record)
    return record


def _circumstances(devices: Sequence[str]) -> dict[str, Any]:
    """Code, packages and machine of this process."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git": git_state(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "devices": list(devices),
    }


def _save_patch(folder: Path) -> None:
    state = git_state()
    if state and state["dirty"]:
        top = _git(Path(__file__).parent, "rev-parse", "--show-toplevel")
        patch = _git(Path(top.strip()), "diff", "HEAD", "--binary") if top else None
        if patch and len(patch) <= _LARGEST_PATCH:
            write_atomic(folder / "uncommitted.patch", patch.encode("utf-8", "surrogateescape"))


def _git(folder: Path, *words: str) -> str | None:
    """Output of a git command, or None if git is missing, slow or says no."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, timeout=10, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else None
