"""Train a model: python launch/main.py [group=option ...] [key=value ...]."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.job import as_in_its_sweep, run_job
from launch.processes import begin
from launch.program import refuse, start, start_logging
from launch.resume import replay_words
from launch.sweep import reported
from llm.core.spec import RefusedError
from llm.train.experiment import ExperimentSpec
from llm.train.stopping import StopSignal


@hydra.main(version_base="1.3", config_path="../conf", config_name="main")
def main(cfg: DictConfig) -> float | None:
    """Run one job; the return value is its objective, see `ExperimentSpec.objective`."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(cfg)
    with StopSignal() as stop:  # first of all: the imports of a run take seconds
        objective = _run(cfg, stop)
        stop.ignore()  # all is saved: a signal has nothing left to stop but the exit status
    return objective


def _run(cfg: DictConfig, stop: StopSignal) -> float | None:
    start_logging()
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        experiment = as_in_its_sweep(spec_from_config(cfg, ExperimentSpec), folder)
        outcome = begin(experiment, folder, list(hydra_config.overrides.task), stop)
    except RefusedError as error:
        refuse(error)
    if outcome.left_behind:
        # A compilation that was left behind holds up the interpreter's normal end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return outcome.objective


def program() -> None:
    """`main`, but `resume=FOLDER` is replaced by the words of that run or sweep."""
    sys.argv[1:] = replay_words(sys.argv[1:])
    reported(main)


if __name__ == "__main__":
    start(program)
