"""Questions whose answer is written: by the likeliest tokens, and by drawn ones for pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from llm.eval.asking import Asking
from llm.eval.measures import accuracy, pass_at
from llm.eval.questions import QuestionSet
from llm.eval.scorer import check_finite
from llm.generate.language_model import LanguageModel
from llm.generate.specs import Sampling
from llm.generate.stop_strings import Cut

_KEPT = 20  # answers that go into result.json, for people


def write_answers(
    lm: LanguageModel,
    how: Asking,
    task: QuestionSet,
    sampling: Sampling,
    *,
    samples: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Ask every question of a task.

    Args:
        lm: the model.
        how: it is asked.
        task: the questions.
        sampling: how answers are drawn; besides, the likeliest tokens are taken once.
        samples: answers to draw to each question; 0: none.
        batch_size: answers that are written at a time.
        seed: all randomness follows from it.

    Returns:
        Accuracy, pass@k, and the first answers, as result.json has them.

    Raises:
        NotFiniteError: the probability of what was written is no number.
    """
    prompts = [how.prompt(question, task.shots) for question in task.questions]
    cut = Cut(lm.tokenizer, how.stops)

    def write(sampling: Sampling, n: int) -> list[list[str]]:
        answers = lm.engine.generate(
            prompts,
            sampling,
            key=jax.random.key(seed),
            stop_ids=lm.stop_ids,
            n=n,
            batch_size=batch_size,
            is_over=cut.is_over if how.stops else None,
        )
        for answer in (answer for of_one in answers for answer in of_one):
            check_finite(answer.log_probs, f"task {task.name}, an answer")
        return [[cut.text(answer.ids).strip() for answer in of_one] for of_one in answers]

    likeliest = [texts[0] for texts in write(sampling.replace(temperature=0.0), 1)]
    right = [q.accepts(text) for q, text in zip(task.questions, likeliest, strict=True)]
    result = accuracy(right)
    if samples:
        drawn = write(sampling, samples)
        n_right = [_count(q.accepts, texts) for q, texts in zip(task.questions, drawn, strict=True)]
        result["pass_at"] = pass_at(n_right, samples)
    result["answers"] = [
        {"question": q.text, "answer": q.answer, "written": text, "right": ok}
        for q, text, ok, _ in zip(task.questions, likeliest, right, range(_KEPT), strict=False)
    ]
    return result


def _count(accepts: Any, texts: Sequence[str]) -> int:
    return sum(accepts(text) for text in texts)
