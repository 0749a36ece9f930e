"""Prompts that were answered: what a model is asked while it is trained, to compare answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm.data.order import permutation
from llm.data.rows import Rows

_QUESTIONS = 4  # purpose of a permutation, next to those in `order` and `batches`


class Question(NamedTuple):
    """Tokens of a prompt and of the answer that the data gives."""

    prompt: list[int]
    answer: list[int]


def questions(plans: Sequence[Rows], limit: int) -> list[Question]:
    """Prompts from the rows of some sources, each with its last trained stretch as the answer.

    Args:
        plans: the rows.
        limit: at most so many, drawn from all sources; always the same ones.
    """
    ends = np.cumsum([len(plan.start) for plan in plans])
    found: list[Question] = []
    for place in permutation(int(ends[-1]), _QUESTIONS):
        if len(found) == limit:
            break
        source = int(np.searchsorted(ends, place, side="right"))
        # Counted from the end of its plan: a negative index.
        question = _last_answer(plans[source], int(place - ends[source]))
        if question is not None:
            found.append(question)
    return found


def _last_answer(rows: Rows, piece: int) -> Question | None:
    """None if nothing comes before the trained part."""
    if rows.cache.trained is None:
        return None
    span = slice(rows.start[piece], rows.start[piece] + rows.length[piece] + 1)
    tokens, trained = rows.cache.tokens[span], rows.cache.trained[span]
    places = np.flatnonzero(trained)
    if not len(places):
        return None
    gaps = np.flatnonzero(np.diff(places) > 1)
    begin = places[gaps[-1] + 1] if len(gaps) else places[0]
    if begin == 0:
        return None
    return Question(tokens[:begin].tolist(), tokens[begin : places[-1] + 1].tolist())
