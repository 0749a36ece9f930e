"""One run on several processes, each started with the same words."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from omegaconf import DictConfig, open_dict

from llm.core.hardware import HardwareSpec
from llm.core.launched import launched_by
from llm.core.spec import RefusedError


def join_run(config: DictConfig, hardware: HardwareSpec) -> None:
    """If there are several: join them, and give all the folder of the first, which writes to it.

    Args:
        config: the composed configuration with Hydra's own part, which is changed.
        hardware: of the run.

    Raises:
        RefusedError: they cannot be joined, or have other devices than the profile asks for.
    """
    if launched_by(os.environ) is None:
        return
    from llm.core.hosts import is_first, said_by_first
    from llm.core.machine import claim

    claim(hardware)
    with open_dict(config.hydra):
        config.hydra.run.dir = said_by_first(config.hydra.run.dir)
        if not is_first():
            config.hydra.output_subdir = None
    _check_shared(Path(config.hydra.run.dir).absolute())


def _check_shared(folder: Path) -> None:
    """Is it on a disk that all processes see? Checkpoints wait for ever otherwise."""
    import jax

    from llm.core.hosts import is_first, said_by_all, said_by_first

    mark, problem = "", ""
    if is_first():
        there = next(place for place in (folder, *folder.parents) if place.is_dir())
        try:
            _, mark = tempfile.mkstemp(prefix=".seen-by-all-", dir=there)
        except OSError as error:
            problem = f"{there}: cannot be written to ({error.strerror})"
    mark = said_by_first(mark)
    if mark and not _appears(Path(mark)):
        problem = (
            f"process {jax.process_index()} does not see {Path(mark).parent}: hydra.run.dir must "
            "be on a disk that all processes share"
        )
    problems = [*filter(None, said_by_all(problem))]
    if is_first() and mark:
        Path(mark).unlink()
    if problems:
        raise RefusedError(problems[0])


def _appears(path: Path, seconds: float = 10.0) -> bool:
    """Is it there, or soon? Network file systems take a while to say so."""
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.2)
    return path.exists()


def problem_anywhere(problem: str) -> str:
    """What is wrong here, or else in another process of the run; empty if nothing is.

    All must come here.
    """
    if launched_by(os.environ) is None:
        return problem
    from llm.core.hosts import said_by_all

    problems = [problem, *said_by_all(problem)]
    return next(filter(None, problems), "")
