"""Questions whose answer is picked: the choice that the model gives the highest probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llm.eval.asking import Asking, check_length
from llm.eval.measures import accuracy
from llm.eval.questions import QuestionSet
from llm.eval.scorer import Query, Scored, Scorer


class Picked(NamedTuple):
    """Which choice of a question is the likeliest."""

    in_all: int
    """By the log-probability of the whole text."""
    per_byte: int
    """By that divided by the bytes of the text (UTF-8), which does not favour short ones."""


def pick(scores: Sequence[Scored], texts: Sequence[str]) -> Picked:
    """The likeliest of several continuations; of equal ones the first."""
    log_probs = np.array([one.log_probs.astype(np.float64).sum() for one in scores])
    sizes = np.array([len(text.encode()) for text in texts])
    return Picked(int(log_probs.argmax()), int((log_probs / sizes).argmax()))


def answer_choices(scorer: Scorer, how: Asking, task: QuestionSet) -> dict[str, Any]:
    """Ask every question of a task.

    Returns:
        Accuracies with their intervals, as result.json has them.

    Raises:
        RefusedError: a question is longer than the context.
    """
    queries = []
    for question in task.questions:
        prompt = how.prompt(question, task.shots)
        choices = [how.choice(question, task.shots, text) for text in question.choices]
        queries.append(Query(prompt, choices))
    longest = max(len(ids) for query in queries for ids in query.continuations)
    check_length(task, [query.context for query in queries], scorer.context - longest + 1)
    right, right_per_byte = [], []
    for question, scores in zip(task.questions, scorer(queries), strict=True):
        picked = pick(scores, question.choices)
        right.append(question.choices[picked.in_all] == question.answer)
        right_per_byte.append(question.choices[picked.per_byte] == question.answer)
    second = accuracy(right_per_byte)
    return {
        **accuracy(right, task.chance),
        "accuracy_per_byte": second["accuracy"],
        "accuracy_per_byte_95": second["accuracy_95"],
    }
