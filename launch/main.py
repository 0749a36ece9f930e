"""Train a model: python launch/main.py [group=option ...] [key=value ...]."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from launch.config import refuse, spec_from_config, start_logging
from launch.resume import check_run_folder, replay_words
from llm.core.spec import RefusedError
from llm.train.experiment import ExperimentSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="main")
def main(cfg: DictConfig) -> float | None:
    """Run one job; the return value is what a sweeper minimises: the last held-out loss."""
    from llm.train.run import run

    start_logging()
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        experiment = spec_from_config(cfg, ExperimentSpec)
        check_run_folder(experiment, folder)
        outcome = run(experiment, folder, overrides=list(hydra_config.overrides.task))
    except RefusedError as error:
        refuse(error)
    if outcome.left_behind:
        # A compilation that was left behind holds up the interpreter's normal end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return outcome.eval_loss


if __name__ == "__main__":
    try:
        sys.argv[1:] = replay_words(sys.argv[1:])
    except RefusedError as error:
        refuse(error)
    main()
