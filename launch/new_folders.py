"""Folders that Hydra makes before a program begins: if it refuses its words, they go away again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

_OF_HYDRA = {".hydra", "multirun.yaml"}

_new: dict[Path, Path] = {}  # each with the folder above it that was there before


def will_be_made(folder: Path) -> None:
    """Remember a folder that Hydra is about to make; one that is there already stays whatever."""
    folder = folder.absolute()
    if not folder.exists():
        _new[folder] = next(place for place in folder.parents if place.exists())


def forget() -> None:
    """Take away the new folders in which nothing came to be, and those made to hold them."""
    for folder, there in _new.items():
        if (folder / "multirun.yaml").exists():
            for job in folder.iterdir():
                forget_unless_begun(job)
        forget_unless_begun(folder)
        with contextlib.suppress(OSError):  # something else is in there
            for place in folder.parents[: folder.parents.index(there)]:
                place.rmdir()
    _new.clear()


def forget_unless_begun(folder: Path) -> None:
    """Take away a folder that holds no more than what Hydra writes before a job begins."""
    if folder.name in _OF_HYDRA or not folder.is_dir():
        return
    if {path.name for path in folder.iterdir()} <= _OF_HYDRA:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
