"""Questions whose answer is picked: the choice that the model gives the highest probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llm.eval.asking import Asking
from llm.eval.measures import accuracy
from llm.eval.questions import QuestionSet
from llm.eval.scorer import Query, Scored, Scorer, check_finite


class Picked(NamedTuple):
    """Which choices of a question are the likeliest: one, or several that are equally likely."""

    in_all: tuple[int, ...]
    """By the log-probability of the whole text."""
    per_byte: tuple[int, ...]
    """By that divided by the bytes of the text (UTF-8), which does not favour short ones."""


def pick(scores: Sequence[Scored], texts: Sequence[str], task: str) -> Picked:
    """The likeliest of several continuations.

    Raises:
        NotFiniteError: a log-probability is no number; `task` is what the message names.
    """
    log_probs = np.array([one.log_probs.astype(np.float64).sum() for one in scores])
    check_finite(log_probs, f"{task}, the choices")
    sizes = np.array([len(text.encode()) for text in texts])
    return Picked(_best(log_probs), _best(log_probs / sizes))


def _best(values: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(values == values.max()).tolist())


def credit(best: Sequence[int], right: int) -> float:
    """1 for the right choice, 1/n where it is one of n best: what drawing one of them expects."""
    return 1 / len(best) if right in best else 0.0


def answer_choices(scorer: Scorer, how: Asking, task: QuestionSet) -> dict[str, Any]:
    """Ask every question of a task.

    Returns:
        Accuracies with their intervals, as result.json has them.

    Raises:
        NotFiniteError: the probability of a choice is no number.
    """
    queries = []
    for question in task.questions:
        prompt = how.prompt(question, task.shots)
        choices = [how.choice(question, task.shots, text) for text in question.choices]
        queries.append(Query(prompt, choices))
    right, right_per_byte = [], []
    for question, scores in zip(task.questions, scorer(queries), strict=True):
        picked = pick(scores, question.choices, f"task {task.name}")
        answer = question.choices.index(question.answer)
        right.append(credit(picked.in_all, answer))
        right_per_byte.append(credit(picked.per_byte, answer))
    second = accuracy(right_per_byte)
    return {
        **accuracy(right, task.chance),
        "accuracy_per_byte": second["accuracy"],
        "accuracy_per_byte_95": second["accuracy_95"],
    }
