"""Folders that are built once and never seen half-finished.

A folder is filled under a temporary name and renamed when complete, so a reader finds all of it or
nothing. A file lock keeps two processes from doing the work twice; the system releases it when its
holder dies, however that happens, and what the dead process left is swept away by the next build.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from loguru import logger

_PREFIX = ".building-"


def build_once(
    folder: Path, build: Callable[[Path], None], is_whole: Callable[[Path], bool]
) -> None:
    """Make sure that `folder` exists and is whole.

    Args:
        folder: the final place; its name must not contain a dash.
        build: fills the (empty, temporary) folder it is given.
        is_whole: tells whether a folder that is there can be used; if not, it is built anew.

    Raises:
        Whatever `build` raises; nothing is left behind then.
    """
    if folder.exists() and is_whole(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder, wait=True) as locked:
        if locked:
            _sweep(folder)
        if folder.exists():
            if is_whole(folder):
                return
            logger.warning("{} is damaged: building it again", folder)
            _remove(folder)
        work = folder.parent / f"{_PREFIX}{folder.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        work.mkdir()
        try:
            build(work)
            for path in work.iterdir():
                _flush_to_disk(path)
            _publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, folder: Path) -> None:
    try:
        work.rename(folder)
    except OSError:
        # Only without a working lock can another process have got here first; its copy is equal.
        if not folder.exists():
            raise


def _remove(folder: Path) -> None:
    """Take a folder out of sight in one move, then delete it."""
    doomed = folder.parent / f"{_PREFIX}{folder.name}-{uuid.uuid4().hex[:8]}"
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Delete what dead builds left: temporary folders whose lock nobody holds."""
    for left in folder.parent.glob(f"{_PREFIX}*"):
        name = left.name.removeprefix(_PREFIX).split("-")[0]
        if name == folder.name:  # we hold this one's lock
            shutil.rmtree(left, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), _lock(folder.parent / name, wait=False):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path, wait: bool) -> Iterator[bool]:
    """Hold the folder's lock; yields False where the file system has none.

    Raises:
        OSError: without `wait`, when another process holds it or there are no locks.
    """
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            logger.info("another process is building {}: waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems have no locks. Work is then done twice at worst, since
            # temporary names are unique and the rename decides; but nothing may be swept.
            if not wait:
                raise
            logger.debug("{}: this file system has no locks", folder.parent)
            locked = False
        yield locked


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
