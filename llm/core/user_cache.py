"""Where what any run may use again is kept: compiled programs and downloads."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """LERNAEAN_CACHE, or `lernaean` in the user's cache folder."""
    chosen = os.environ.get("LERNAEAN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lernaean"
