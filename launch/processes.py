"""One run on several processes, each started with the same words."""

from __future__ import annotations

import os

from omegaconf import DictConfig, open_dict

from llm.core.hardware import HardwareSpec
from llm.core.launched import launched_by


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


def problem_anywhere(problem: str) -> str:
    """What is wrong here, or else in another process of the run; empty if nothing is.

    All must come here.
    """
    if launched_by(os.environ) is None:
        return problem
    from llm.core.hosts import said_by_all

    problems = [problem, *said_by_all(problem)]
    return next(filter(None, problems), "")
