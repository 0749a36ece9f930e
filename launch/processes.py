"""One run on several processes, each started with the same words."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llm.core.hardware import HardwareSpec
from llm.core.launched import launched_by
from llm.core.spec import RefusedError
from llm.train.experiment import ExperimentSpec
from llm.train.stopping import StopSignal

if TYPE_CHECKING:
    from llm.train.run import Outcome


def join_run(hardware: HardwareSpec, folder: Path) -> Path:
    """If there are several: join them.

    Args:
        hardware: of the run.
        folder: of the run, as this process would have it.

    Returns:
        The folder of the first process, which writes to it.

    Raises:
        RefusedError: they cannot be joined, have other devices than the profile asks for, or the
            folder is not on a disk that all see.
    """
    if launched_by(os.environ) is None:
        return folder
    from llm.core.hosts import said_by_first
    from llm.core.machine import claim

    claim(hardware)
    folder = Path(said_by_first(str(folder)))
    _check_shared(folder.absolute())
    return folder


def begin(
    experiment: ExperimentSpec, folder: Path, overrides: Sequence[str], stop: StopSignal
) -> Outcome:
    """Run an experiment that fits. Its processes, if there are several, have been joined.

    Raises:
        RefusedError: it does not fit in one of them, or cannot work.
    """
    import jax

    from llm.core.hosts import is_first
    from llm.core.machine import claim
    from llm.plan.check import check_fits
    from llm.report.terminal import setup_logging
    from llm.train.run import run

    with agreed():
        machine = claim(experiment.hardware)
        if not is_first():
            setup_logging("WARNING", f"process {jax.process_index()}: ")
        check_fits(experiment, machine, folder)
    return run(experiment, folder, overrides=overrides, stop=stop)


@contextmanager
def agreed() -> Iterator[None]:
    """What one process of the run refuses within it, all refuse. All must come here.

    None of them must stop alone while the others wait for it.
    """
    problem = ""
    try:
        yield
    except RefusedError as error:
        problem = str(error)
    except Exception as error:
        if launched_by(os.environ) is None:
            raise
        problem = f"{type(error).__name__}: {error}"
    if problem := _problem_anywhere(problem):
        raise RefusedError(problem)


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


def _problem_anywhere(problem: str) -> str:
    """What is wrong here, or else in another process of the run; empty if nothing is."""
    if launched_by(os.environ) is None:
        return problem
    from llm.core.hosts import said_by_all

    problems = [problem, *said_by_all(problem)]
    return next(filter(None, problems), "")
