"""One job of a sweep: it leaves nothing behind for the next one, and fails for itself alone."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.new_folders import forget_unless_begun
from launch.orphans import working
from launch.parallel import jobs_at_once, launcher_name
from launch.processes import agreed, begin, join_run
from launch.program import start_logging
from llm.core.spec import RefusedError, RunFailedError
from llm.report.json_files import read_json
from llm.report.objective import BITS_PER_BYTE
from llm.train.experiment import ExperimentSpec
from llm.train.meaning_of_last import with_meaning
from llm.train.stopping import StopSignal

RECORD = "sweep.json"

_signals: list[StopSignal] = []


def signals(workers: bool = False) -> StopSignal:
    """The stop signal of this process: open from its first call on, between jobs too.

    Args:
        workers: jobs run in processes that this one has started, which are to stop as well.
    """
    if not _signals:
        _signals.append(StopSignal(_tell_children if workers else None).__enter__())
    return _signals[0]


def as_in_its_sweep(experiment: ExperimentSpec, folder: Path) -> ExperimentSpec:
    """The experiment as its sweep runs it, if the folder is that of a point of a sweep."""
    record = read_json(folder.parent / RECORD)
    unnamed = experiment.objective is None and experiment.goal.per_token
    if unnamed and record.get("objective") == BITS_PER_BYTE:  # as tokenizers differ
        experiment = experiment.replace(objective=BITS_PER_BYTE)
    return with_meaning(experiment, record.get("last") or {})


def run_job(cfg: DictConfig) -> float | None:
    """Run one point.

    Returns:
        Its objective; None if it was stopped or did not measure it.
    """
    stop = signals()
    hydra = HydraConfig.get()
    with working(stop):
        return _run(cfg, hydra, stop)


def _run(cfg: DictConfig, hydra: Any, stop: StopSignal) -> float | None:
    folder = Path(hydra.runtime.output_dir)
    start_logging()
    if stop() or not _take_share(hydra, folder.parent, stop):
        forget_unless_begun(folder)
        _end_sweep()
        return None
    try:
        status, objective = _train(cfg, hydra, folder, stop)
    except Exception as error:
        _note(error, folder)
        _let_go(error)
        raise
    finally:
        _clean_up()
    if status == "stopped":
        _end_sweep()
        return None
    return objective


def _train(cfg: DictConfig, hydra: Any, folder: Path, stop: StopSignal) -> tuple[str, float | None]:
    from loguru import logger

    from llm.core.hosts import is_first

    with agreed():
        experiment = as_in_its_sweep(spec_from_config(cfg, ExperimentSpec), folder)
        folder = join_run(experiment.hardware, folder)
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # this job was queued again
        experiment = experiment.replace(resume="true")
    tracker = experiment.tracker
    experiment = experiment.replace(
        tracker=tracker.replace(
            group=tracker.group or folder.parent.name,
            name=tracker.name or hydra.job.override_dirname or None,
        )
    )
    result = read_json(folder / "result.json")
    ended = result.get("status"), result.get("step")
    if experiment.resumes and ended == ("finished", experiment.trainer.steps):
        logger.info("{} is finished already.", folder)
        return "finished", experiment.goal.of(result)
    outcome = begin(experiment, folder, list(hydra.overrides.task), stop)
    if is_first() and outcome.status == "finished" and outcome.objective is None:
        logger.warning("objective={}: was not measured by {}", experiment.goal, folder)
    return outcome.status, outcome.objective


def _note(error: Exception, folder: Path) -> None:
    """Say at once what went wrong: the end of the sweep may be days away."""
    from loguru import logger

    from llm.core.hosts import is_first
    from llm.report.run_files import now, write_result

    if isinstance(error, RefusedError):
        logger.error("{}: refused: {}", folder.name, error)
    elif isinstance(error, RunFailedError):
        logger.error("{} failed: {}", folder.name, error)
    else:
        lines = "".join(traceback.format_exception(error))
        logger.error("{} failed:\n{}", folder.name, lines)
    if is_first() and read_json(folder / "result.json").get("status") != "failed":
        write_result(
            folder, status="failed", step=0, tokens=0, started=now(), final={}, best={}, ledger={},
            error={"type": type(error).__name__, "message": str(error)},
        )  # fmt: skip


def _let_go(error: BaseException) -> None:
    """An exception holds on to the variables of all it went through, arrays on a GPU among them."""
    seen: BaseException | None = error
    while seen is not None:
        if seen.__traceback__ is not None and seen.__traceback__.tb_next is not None:
            traceback.clear_frames(seen.__traceback__.tb_next)
        seen = seen.__cause__ or seen.__context__


def _clean_up() -> None:
    """Compiled programs and arrays of this job are of no use to the next."""
    import jax

    jax.clear_caches()
    gc.collect()
    with suppress(OSError):  # the peak of memory, which is to be that of each job
        Path("/proc/self/clear_refs").write_text("5")


def _end_sweep() -> None:
    """A stop is meant for the whole sweep; a worker's process is waited for by another one."""
    if launcher_name(HydraConfig.get().launcher) == "BasicLauncher":
        raise SystemExit(0)


def _take_share(hydra: Any, sweep: Path, stop: StopSignal) -> bool:
    """Have a part of the machine where jobs divide it; False if a stop was asked for before."""
    from llm.core.shares import take_share

    number = jobs_at_once(hydra.launcher)
    return number == 1 or take_share(sweep / ".shares", number, stop) is not None


def _tell_children(number: int) -> None:
    """Processes that run jobs for this one are to stop too.

    Ctrl-C at a terminal reaches them by itself.
    """
    if number == signal.SIGINT and _at_terminal():
        return
    for thread in Path("/proc/self/task").glob("*/children"):
        for child in thread.read_text().split():
            with suppress(OSError):
                os.kill(int(child), signal.SIGTERM)


def _at_terminal() -> bool:
    """Is this one of the processes that a terminal sends Ctrl-C to?"""
    try:
        with Path("/dev/tty").open() as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
