"""May a file of that name be written?"""

from __future__ import annotations

from pathlib import Path

from llm.core.spec import RefusedError


def check_new_file(path: Path, key: str) -> None:
    """Refuse a file that exists or a folder that does not.

    Args:
        path: of the file that is to be written.
        key: that names it on the command line.

    Raises:
        RefusedError: with what to change.
    """
    if path.exists():
        raise RefusedError(f"{key}={path}: exists already; name another file")
    if not path.parent.is_dir():
        raise RefusedError(f"{key}={path}: there is no folder {path.parent}")
