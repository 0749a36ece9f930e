"""Continuing a run or a sweep: with its own words, in its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llm.core.spec import RefusedError
from llm.report.json_files import read_json


def replay_words(words: list[str]) -> list[str]:
    """Command-line words that continue what `resume=FOLDER` (or `resume=last`) names.

    The own words of the run or sweep come first, then those given now. `resume=true` and no
    `resume` leave the words as they are.

    Raises:
        RefusedError: there is no such run, or words that a continuation cannot follow.
    """
    wanted = [word.split("=", 1)[1] for word in words if word.startswith("resume=")]
    if not wanted or wanted[-1].lower() in ("true", "false", "null", ""):
        return words
    folder = _run_folder(wanted[-1])
    sweep = read_json(folder / "sweep.json")
    if sweep:
        return _replay_sweep(folder, sweep, words)
    file = folder / ".hydra" / "overrides.yaml"
    if not file.exists():
        raise RefusedError(f"resume={wanted[-1]}: {file} is missing, so its words are not known")
    for word in words:
        if word in ("-m", "--multirun") or word.startswith("hydra.run.dir="):
            raise RefusedError(
                f"resume={wanted[-1]} goes on in that run's folder; leave {word} away"
            )
    old = [str(word) for word in OmegaConf.load(file)]
    return [*_merged(old, words), "resume=true", f"hydra.run.dir={_quoted(folder)}"]


def _replay_sweep(folder: Path, sweep: dict[str, Any], words: list[str]) -> list[str]:
    for word in words:
        if word.startswith(("hydra.run.dir=", "hydra.sweep.dir=")):
            raise RefusedError(f"resume={folder} goes on in that sweep's folder; leave {word} away")
    old = [str(word) for word in (*sweep["words"], *sweep["hydra"])]
    new = [word for word in words if word not in ("-m", "--multirun")]
    return ["-m", *_merged(old, new), "resume=true", f"hydra.sweep.dir={_quoted(folder)}"]


def _merged(old: list[str], words: list[str]) -> list[str]:
    """The old words but those that are given anew, then the new ones."""
    new = [word for word in words if not word.startswith("resume=")]
    given = {_key(word) for word in new}
    return [*(w for w in old if _key(w) not in given and _key(w) != "resume"), *new]


def _quoted(folder: Path) -> str:
    text = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _run_folder(name: str) -> Path:
    if name == "last":
        from llm.hub.sources import runs

        found = runs()
        if not found:
            raise RefusedError("resume=last: there is no run in outputs/")
        return found[-1]
    folder = Path(name)
    if not (folder / ".hydra").is_dir() and not (folder / "sweep.json").is_file():
        raise RefusedError(f"resume={name}: not a run folder (no .hydra in it)")
    return folder


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+~")
