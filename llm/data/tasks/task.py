"""A task: a question, and the one answer that is right."""

from __future__ import annotations

from dataclasses import dataclass

from llm.data.tasks.verifier import is_correct


@dataclass(frozen=True)
class Task:
    """A question whose answer a program can check.

    Args:
        question: plain text; it says in which form the answer is wanted where that is not obvious.
        answer: the short, canonical form of the only right answer.
        name: the kind of task, a key of `TASKS` or one of reasoning-gym's.
        any_case: an answer in other upper and lower case letters is right too.
        number: which item of its kind it is.
    """

    question: str
    answer: str
    name: str
    any_case: bool = False
    number: int = 0

    @property
    def text(self) -> str:
        """Question and answer as a conversation's text has them, see `llm.data.conversations`.

        What is held out is decided by a hash of it, so pretraining, fine-tuning, reinforcement
        learning and evaluation have to agree on it.
        """
        return f"{self.question}\n{self.answer}"

    def accepts(self, completion: str) -> bool:
        """Whether a completion is the answer; the rule is that of `is_correct`."""
        return is_correct(self.answer, completion, any_case=self.any_case)
