"""A name that runs share if they differ in nothing but their seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from llm.train.experiment import ExperimentSpec
from llm.train.run_folder import defining

# Words that say how, when and under which name an experiment runs, and not what it is.
_NOT_SHOWN = ("seed", "name", "hardware", "tracker", "checkpoint", "hydra", "resume", "plan")


def variant(experiment: ExperimentSpec, overrides: Sequence[str]) -> str:
    """For people and for grouping: the words of the command line, and a digest of the experiment.

    Args:
        experiment: the run's.
        overrides: the words of the command line.
    """
    specs = defining(experiment.to_json(), free=("seed", "name"))
    digest = hashlib.sha256(json.dumps(specs, sort_keys=True).encode()).hexdigest()[:6]
    words = sorted(
        word for word in overrides if word.partition("=")[0].split(".")[0] not in _NOT_SHOWN
    )
    return f"{' '.join(words) or experiment.name} #{digest}"
