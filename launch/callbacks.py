"""Between composing words and making a folder for them, Hydra asks us: what is wrong is refused.

conf/*.yaml name the class for each program.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from launch.config import spec_from_config
from launch.early_checks import check_documents, check_what_is_there
from launch.job import as_in_its_sweep
from launch.processes import agreed, join_run
from launch.program import refuse
from launch.sweep import begin
from llm.core.launched import launched_by
from llm.core.spec import RefusedError, Spec
from llm.eval.specs import EvaluateSpec
from llm.plan.specs import PlanSpec
from llm.train.experiment import ExperimentSpec
from llm.train.tokenizer_spec import TokenizerTrainingSpec


class RefuseWords(Callback):
    """Checks the words of a plan or a dashboard before Hydra creates its folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the folder."""
        try:
            spec = spec_from_config(config, Spec)
            if isinstance(spec, PlanSpec) and spec.hardware.device == "gpu":
                from llm.plan.target import target_by_name

                target_by_name(spec.hardware)
        except RefusedError as error:
            refuse(error)


class RefuseTokenizer(Callback):
    """Checks the words of launch/tokenizer.py before Hydra creates its folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the folder."""
        from llm.hub.sources import check_tokenizer_source

        try:
            spec = spec_from_config(config, TokenizerTrainingSpec)
            check_documents(spec.data.sources)
            for source in spec.compare:
                check_tokenizer_source(source, "compare")
        except RefusedError as error:
            refuse(error)


class RefuseEvaluation(Callback):
    """Checks the words of an evaluation before Hydra creates its folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the folder."""
        try:
            spec = spec_from_config(config, EvaluateSpec)
            check_documents([spec.data])
            from llm.eval.early_checks import check_words

            check_words(spec)
        except RefusedError as error:
            refuse(error)


new_folders: set[Path] = set()
"""Folders of runs that were not there before Hydra made them, in this process."""


class RefuseEarly(Callback):
    """Checks a run, or each point of a sweep, before Hydra creates a folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the run's folder."""
        try:
            with agreed():
                _check_run(config)
        except RefusedError as error:
            # An exception would only become a warning here: Hydra guards itself from callbacks.
            refuse(error)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing what all points share and the first job."""
        begin(config)


def _check_run(config: DictConfig) -> None:
    """Check a run; of several processes all get the folder of the first in their configuration."""
    from llm.train.run_folder import check_run_folder

    experiment = spec_from_config(config, ExperimentSpec)
    folder = join_run(experiment.hardware, Path(config.hydra.run.dir))
    if launched_by(os.environ) is not None:
        from llm.core.hosts import is_first

        with open_dict(config.hydra):
            config.hydra.run.dir = str(folder)
            if not is_first():
                config.hydra.output_subdir = None
    experiment = as_in_its_sweep(experiment, folder)
    check_run_folder(experiment, folder)
    if not folder.exists():
        new_folders.add(folder.absolute())
    check_what_is_there(experiment)
