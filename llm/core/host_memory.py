"""Memory of this machine: what this process may use of it, and what it has used."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def host_memory(root: Path = Path("/")) -> int:
    """Bytes: what is built in, or less if a container or a job (of Slurm, say) is held to less.

    Args:
        root: where `proc` and `sys` lie.
    """
    built_in = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([built_in, *_limits(root)])


def peak_memory() -> int:
    """Bytes that this process has held at most.

    On Linux not `getrusage`'s: there a process starts with the peak of the one that started it.
    """
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert line is not None
    return int(line[1]) * 1024


def _limits(root: Path) -> Iterator[int]:
    """Of the control groups of this process and of those around them, bytes.

    `/proc/self/cgroup` has a line `number:controllers:path` for each; version 2's is `0::path`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _along(mounted, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _along(mounted / "memory", path, "memory.limit_in_bytes")


def _along(mounted: Path, path: str, name: str) -> Iterator[int]:
    """From a group up to the root, as which a container may see its own, whatever its path."""
    inside = PurePosixPath(path).relative_to("/")
    for group in (inside, *inside.parents):
        try:
            limit = (mounted / group / name).read_text().strip()
        except OSError:
            continue
        if limit.isdecimal():  # else `max`
            yield int(limit)
