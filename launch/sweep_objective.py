"""What the points of a sweep are compared by, where they do not share a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm.report.objective import BITS_PER_BYTE
from llm.train.experiment import ExperimentSpec


def with_objective(experiments: Sequence[ExperimentSpec]) -> str:
    """The objective of all points, as words.

    A loss per token says nothing across tokenizers: longer tokens are harder to foretell. Unless
    the user named one, bits per byte take its place; if one is named, a warning is logged.
    """
    first = experiments[0]
    measured = first.trainer.held_out_metrics(first)
    if len(set(map(_tokenizer, experiments))) == 1 or BITS_PER_BYTE not in measured:
        return str(first.goal)
    if not first.goal.per_token:
        return str(first.goal)
    if first.objective is None and first.data.eval_fraction:
        return BITS_PER_BYTE
    from loguru import logger

    logger.warning(
        "objective={} is per token, and the tokenizer may differ between points, so it may rank "
        "them wrongly; on held-out data, objective={} can be compared.", first.goal, BITS_PER_BYTE,
    )  # fmt: skip
    return str(first.goal)


def _tokenizer(experiment: ExperimentSpec) -> Any:
    """What decides which tokenizer a point has: its own, the model's, or how one is trained."""
    given = experiment.data.tokenizer
    return given.path or experiment.first_weights or given
