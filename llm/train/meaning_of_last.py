"""What `init_from=last` means to a run: the newest checkpoint when it began, however it goes on.

Later the newest one is that of another run, or of a point of the same sweep.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm.core.spec import RefusedError
from llm.train.experiment import ExperimentSpec


def meaning_of_last(experiment: ExperimentSpec) -> dict[str, str]:
    """`last`, `last:sft` and so on, as `init_from` has them, each with its checkpoint.

    Raises:
        RefusedError: there is no such run.
    """
    from llm.hub.sources import find_checkpoint, names_last  # takes a second

    first = experiment.first_weights
    found = {}
    for name in filter(names_last, [first] if isinstance(first, str) else first or ()):
        try:
            found[name] = str(find_checkpoint(name, "init_from"))
        except RefusedError:
            if isinstance(first, str):  # of several, some may be missing
                raise
    return found


def with_meaning(experiment: ExperimentSpec, meaning: Mapping[str, str]) -> ExperimentSpec:
    """The experiment with checkpoints instead of words.

    Args:
        meaning: what `meaning_of_last` has found.
    """
    first = experiment.first_weights
    if isinstance(first, str):
        return experiment.replace(init_from=meaning[first]) if first in meaning else experiment
    if first and any(name in meaning for name in first):
        return experiment.replace(init_from=[meaning.get(name, name) for name in first])
    return experiment
