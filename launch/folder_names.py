"""What folders of runs and of points of sweeps are called."""

from __future__ import annotations

import re
from pathlib import Path


def folder_name(overrides: str) -> str:
    """Words as a part of a folder's name: nothing that programs read anything into in a path.

    Checkpoints below a folder with brackets in its name cannot be read again.
    """
    kept = re.sub(r"[^\w.,=+@-]", "", overrides.replace("/", "."))
    return kept[:120] or "defaults"  # not too long for a file system


def point_folder(sweep: str, number: int, overrides: str, resume: str | None) -> str:
    """The name of a point's folder: its number and its overrides.

    A point of a sweep that goes on keeps its folder, also if new points stand before it now.
    """
    name = folder_name(overrides)
    usual = f"{number}-{name}"
    if str(resume).lower() != "true" or (Path(sweep) / usual).exists():
        return usual
    there = [p.name for p in Path(sweep).glob("[0-9]*-*") if p.name.partition("-")[2] == name]
    return there[0] if len(there) == 1 else usual
