"""Parts of a machine for processes that run at the same time: none takes what another has."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from loguru import logger

from llm.core.devices import MEMORY_SHARE

_PAUSE = 0.5  # seconds between two looks whether a part has become free
_PATIENCE = 5.0  # seconds to wait without a word
_held: dict[Path, tuple[Share, IO[str]]] = {}


@dataclass(frozen=True)
class Share:
    """One of so many parts of this machine."""

    number: int
    of: int
    cpus: tuple[int, ...]
    """Cores of this part."""
    gpus: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; none where there are none."""
    per_gpu: int
    """Parts that have the same GPU."""

    def take(self) -> None:
        """Confine this process to it. Comes before anything touches a device or starts threads."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cpus)  # XLA, BLAS and tokenizers look at this
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
            os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{self.memory_fraction:.3f}"

    @property
    def memory_fraction(self) -> float:
        """Of the memory of each of its GPUs."""
        return MEMORY_SHARE / self.per_gpu


def share(number: int, of: int, cpus: list[int], gpus: list[str]) -> Share:
    """Part `number` of `of` of these cores and GPUs: disjoint as long as there are enough."""
    mine = cpus[number::of] or [cpus[number % len(cpus)]]
    if not gpus:
        return Share(number, of, tuple(mine), (), 1)
    each = gpus[number::of] or [gpus[number % len(gpus)]]
    sharing = sum(1 for other in range(of) if other % len(gpus) == number % len(gpus))
    return Share(number, of, tuple(mine), tuple(each), sharing if of > len(gpus) else 1)


def cpus_here() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def gpus_here(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(n) for n in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def take_share(folder: Path, of: int, stopping: Callable[[], bool]) -> Share | None:
    """Take a part of this machine that no other living process has, waiting for one if need be.

    A process keeps its part until it ends, however it ends: the part is the lock on a file.

    Args:
        folder: where the locks are, the same for all processes that divide the machine.
        of: parts. Cores are dealt out in turn, so are GPUs.
        stopping: was a stop asked for? Then there is nothing to wait for, and no part.
    """
    folder = folder.absolute()
    if folder not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        locked = _lock(folder, of, stopping)
        if locked is None:
            return None
        number, lock = locked
        found = share(number, of, cpus_here(), gpus_here())
        found.take()
        _held[folder] = found, lock
    return _held[folder][0]


def _lock(folder: Path, of: int, stopping: Callable[[], bool]) -> tuple[int, IO[str]] | None:
    """Number and file of a part, in which the process that has it leaves its number."""
    begin = time.monotonic()
    told = False
    while not stopping():
        for number in range(of):
            file = (folder / str(number)).open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
            else:
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                return number, file
        if not told and time.monotonic() - begin > _PATIENCE:
            told = True
            holders = ", ".join((folder / str(number)).read_text() for number in range(of))
            logger.info(
                "Waiting for a part of this machine: processes {} have all {} of them.", holders, of
            )
        time.sleep(_PAUSE)
    return None
