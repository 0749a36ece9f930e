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
from launch.new_folders import will_be_made
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
    """Checks the words before Hydra creates a folder for them, or for the jobs of a multirun."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the folder."""
        try:
            self.check(config)
        except RefusedError as error:
            # An exception would only become a warning here: Hydra guards itself from callbacks.
            refuse(error)
        will_be_made(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing what all jobs share and the first job."""
        will_be_made(Path(config.hydra.sweep.dir))

    def check(self, config: DictConfig) -> None:
        """Refuse what no spec accepts, and a plan for a device that nobody has heard of.

        Raises:
            RefusedError: in one line.
        """
        spec = spec_from_config(config, Spec)
        if isinstance(spec, PlanSpec) and spec.hardware.device == "gpu":
            from llm.plan.target import target_by_name

            target_by_name(spec.hardware)


class RefuseTokenizer(RefuseWords):
    """Checks the words of launch/tokenizer.py."""

    def check(self, config: DictConfig) -> None:
        """Refuse texts and tokenizers that are not there."""
        from llm.hub.sources import check_tokenizer_source

        spec = spec_from_config(config, TokenizerTrainingSpec)
        check_documents(spec.data.sources)
        for source in spec.compare:
            check_tokenizer_source(source, "compare")


class RefuseEvaluation(RefuseWords):
    """Checks the words of an evaluation."""

    def check(self, config: DictConfig) -> None:
        """Refuse texts, checkpoints and tasks that are not there."""
        from llm.eval.early_checks import check_words

        spec = spec_from_config(config, EvaluateSpec)
        check_documents([spec.data])
        check_words(spec)


class RefuseEarly(Callback):
    """Checks a run, or each point of a sweep, and what the processes of a run must agree on."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the run's folder."""
        try:
            with agreed():
                _check_run(config)
        except RefusedError as error:
            refuse(error)
        if config.hydra.output_subdir is not None:  # of several processes, the first
            will_be_made(Path(config.hydra.run.dir))

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
    check_what_is_there(experiment)
