"""Whether the points of a sweep fit the devices that they will have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from launch.parallel import launcher_name, target_for_jobs
from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError
from llm.train.experiment import ExperimentSpec


class Plan:
    """Checks points one after the other; what it has found out once it does not ask again."""

    def __init__(self, launcher: DictConfig) -> None:
        self._launcher = launcher
        self._targets: dict[HardwareSpec, Any] = {}
        self._first: HardwareSpec | None = None

    def check(self, experiment: ExperimentSpec, folder: Path) -> None:
        """Refuse a point that cannot fit, or cannot run in the process of those before it.

        Args:
            experiment: of the point.
            folder: of the point, which may have begun.

        Raises:
            RefusedError: with what would help.
        """
        self._check_process(experiment.hardware)
        if experiment.plan != "refuse":
            return
        from llm.plan.check import why_not
        from llm.plan.estimate import UnknownVocabularyError

        if experiment.hardware not in self._targets:
            self._targets[experiment.hardware] = target_for_jobs(
                experiment.hardware, self._launcher
            )
        target = self._targets[experiment.hardware]
        if target is None:
            return
        try:
            problem = why_not(experiment, target, target.spec.devices, folder)
        except UnknownVocabularyError:
            return
        if problem:
            raise RefusedError(f"{problem}plan=warn starts it all the same.")

    def _check_process(self, hardware: HardwareSpec) -> None:
        """JAX is set up once in a process, in which several jobs run."""
        first = self._first = self._first or hardware
        if launcher_name(self._launcher) not in ("BasicLauncher", "JoblibLauncher"):
            return
        for key in ("device", "xla_flags"):
            if getattr(hardware, key) != getattr(first, key):
                raise RefusedError(
                    f"hardware.{key}={getattr(hardware, key)}: jobs of one process share it, and "
                    f"the first point has {getattr(first, key)}; sweep them one after the other, "
                    "or with hydra/launcher=submitit_local"
                )
