"""Continuing a run: with its own words, in its own folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llm.core.spec import RefusedError, spec_from_json
from llm.train.experiment import ExperimentSpec

# What may differ between a run and its continuation: it does not change what is computed.
_FREE = ("resume", "hardware", "tracker", "checkpoint", "data.workers", "data.cache_dir")
_ON = "true"


def replay_words(words: list[str]) -> list[str]:
    """Command-line words that continue the run which `resume=FOLDER` (or `resume=last`) names.

    The run's own words come first, then those given now. `resume=true` and no `resume` leave the
    words as they are.

    Raises:
        RefusedError: there is no such run, or words that a continuation cannot follow.
    """
    wanted = [word.split("=", 1)[1] for word in words if word.startswith("resume=")]
    if not wanted or wanted[-1].lower() in (_ON, "false", "null", ""):
        return words
    folder = _run_folder(wanted[-1])
    file = folder / ".hydra" / "overrides.yaml"
    if not file.exists():
        raise RefusedError(f"resume={wanted[-1]}: {file} is missing, so its words are not known")
    for word in words:
        if word in ("-m", "--multirun") or word.startswith("hydra.run.dir="):
            raise RefusedError(
                f"resume={wanted[-1]} goes on in that run's folder; leave {word} away"
            )
    old = [str(word) for word in OmegaConf.load(file)]
    new = [word for word in words if not word.startswith("resume=")]
    given = {_key(word) for word in new}
    kept = [w for w in old if _key(w) not in given and _key(w) != "resume"]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*kept, *new, f"resume={_ON}", f"hydra.run.dir='{quoted}'"]


def check_run_folder(experiment: ExperimentSpec, folder: Path) -> None:
    """Refuse to write over a run, or to continue one with another experiment.

    Raises:
        RefusedError: with what to do instead.
    """
    resume = experiment.resume is not None and experiment.resume.lower() == _ON
    if experiment.resume is not None and not resume and experiment.resume.lower() != "false":
        raise RefusedError(
            f"resume={experiment.resume}: a run folder must be named on the command line of "
            "launch/main.py; here only true or false make sense"
        )
    record = folder / "run.json"
    if not record.exists():
        if experiment.init_from is not None:
            from llm.hub.sources import find_checkpoint

            find_checkpoint(experiment.init_from, "init_from")
        return
    if not resume:
        raise RefusedError(
            f"hydra.run.dir={folder}: holds a run already; continue it with resume={folder} "
            "or choose another folder"
        )
    # By way of a spec: an older run has not heard of keys that are newer than it.
    before = spec_from_json(json.loads(record.read_text(encoding="utf-8"))["specs"]).to_json()
    now = experiment.to_json()
    steps, least = now["trainer"]["steps"], max(before["trainer"]["steps"], _steps_done(folder))
    if steps < least:
        raise RefusedError(
            f"trainer.steps={steps}: the run in {folder} has {least} of them; they may grow but "
            "not shrink"
        )
    for config in (now, before):
        for key in ("trainer.steps", *_FREE):
            part, _, leaf = key.rpartition(".")
            (config[part] if part else config).pop(leaf)
    difference = _first_difference(before, now, "")
    if difference:
        key, old, new = difference
        raise RefusedError(
            f"{key}={new}: the run in {folder} was started with {key}={old}; a continued run "
            "keeps its configuration (start a new one, with init_from if you want its weights)"
        )


def _steps_done(folder: Path) -> int:
    """Steps of the newest checkpoint: a continued run may have gone beyond its first plan."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _run_folder(name: str) -> Path:
    if name == "last":
        from llm.hub.sources import runs

        found = runs()
        if not found:
            raise RefusedError("resume=last: there is no run in outputs/")
        return found[-1]
    folder = Path(name)
    if not (folder / ".hydra").is_dir():
        raise RefusedError(f"resume={name}: not a run folder (no .hydra in it)")
    return folder


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+~")


def _first_difference(old: Any, new: Any, path: str) -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            inner = f"{path}.{key}" if path else key
            found = _first_difference(old.get(key), new.get(key), inner)
            if found:
                return found
        return None
    return None if old == new else (path, old, new)
