"""Questions with one right answer: generated ones, and those of local files.

A generated question has to be one that no run has trained on. Runs hold out questions by a hash of
their text, those below a limit that `data.eval_fraction` sets (see `llm.data.split`): asked here
are those below the limit of a fraction of 0.005, which every run with that fraction (the default)
or a larger one holds out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.core.spec import RefusedError
from llm.data.tasks.registry import kinds, tasks
from llm.data.tasks.task import Task
from llm.data.tasks.verifier import is_correct
from llm.data.token_cache import hashes_of

HELD_OUT = 0.005  # share of the questions, as `data.eval_fraction` is by default
GENERATED = 100  # questions of a kind, where no limit is given
CHOICES = 4  # of a generated question, where there are so many
_CHOICES_PREFIX = "choices:"
_BLOCK = 4096
_TRIES = 100


@dataclass(frozen=True)
class Question:
    """What is asked, and what is right."""

    text: str
    answer: str
    accepts: Callable[[str], bool]
    """Whether a written answer is right."""
    choices: tuple[str, ...] = ()
    """Where one of them is to be picked; the answer is among them, once."""


@dataclass(frozen=True)
class QuestionSet:
    """A task: examples to show, and questions to ask."""

    name: str
    questions: tuple[Question, ...]
    shots: tuple[Question, ...]

    @property
    def picks(self) -> bool:
        """Answers are picked and not written."""
        return bool(self.questions[0].choices)

    @property
    def chance(self) -> float:
        """Share of right answers of who picks blindly; 0 where answers are written."""
        if not self.picks:
            return 0.0
        return float(np.mean([1 / len(question.choices) for question in self.questions]))


def question_set(name: str, *, limit: int | None, shots: int) -> QuestionSet:
    """The task that a word of `tasks=[...]` names.

    Args:
        name: `KIND`, generated questions (see `llm.data.tasks.registry`) whose answers are
            written; `choices:KIND`, the same with wrong answers to pick from; or a .jsonl file.
        limit: questions at most.
        shots: examples that are wanted.

    Raises:
        RefusedError: there is no such task, or it has too few questions.
    """
    if name.endswith(".jsonl"):
        return _of_file(Path(name).expanduser(), limit=limit, shots=shots)
    kind = name.removeprefix(_CHOICES_PREFIX)
    try:
        found = [_of_task(task) for task in held_out_tasks(kind, (limit or GENERATED) + shots)]
    except RefusedError as error:
        raise RefusedError(f"{error}, or a .jsonl file") from None
    if len(found) <= shots:
        raise RefusedError(
            f"tasks={name}: {len(found)} questions are held out of it, and {shots} are wanted as "
            "examples"
        )
    if name != kind:
        found = with_choices(found, kind)
    return QuestionSet(name, tuple(found[shots:]), tuple(found[:shots]))


def held_out_tasks(kind: str, count: int) -> list[Task]:
    """The first so many generated tasks of a kind that runs hold out; fewer if it has no more.

    Raises:
        RefusedError: there is no such kind.
    """
    found: list[Task] = []
    block: list[Task] = []
    for task in tasks(kinds(kind), 2 * int(count / HELD_OUT) + _BLOCK):
        block.append(task)
        if len(block) == _BLOCK:
            found += _held_out(block)
            block = []
            if len(found) >= count:
                return found[:count]
    return [*found, *_held_out(block)][:count]


def _held_out(block: Sequence[Task]) -> Iterator[Task]:
    hashes = hashes_of([task.text.encode() for task in block])
    limit = np.uint64(int(HELD_OUT * 2**64))
    return (task for task, value in zip(block, hashes, strict=True) if value < limit)


def _of_task(task: Task) -> Question:
    return Question(task.question, task.answer, task.accepts)


def with_choices(questions: Sequence[Question], seed: str) -> list[Question]:
    """Questions with wrong answers beside the right one, in a random order.

    A number's wrong answers differ from it in one digit; others are right answers to other
    questions, of like length where there are some.
    """
    answers = sorted({question.answer for question in questions})
    found = []
    for number, question in enumerate(questions):
        rng = random.Random(f"{seed} {number}")
        wrong: list[str] = []
        others = sorted(answers, key=lambda a: (abs(len(a) - len(question.answer)), rng.random()))
        is_number = question.answer.removeprefix("-").isdecimal()
        drawn = (_near(question.answer, rng) for _ in range(_TRIES)) if is_number else iter(others)
        for one in drawn:
            if len(wrong) == CHOICES - 1:
                break
            if one not in wrong and not question.accepts(one):
                wrong.append(one)
        choices = [question.answer, *wrong]
        rng.shuffle(choices)
        found.append(Question(question.text, question.answer, question.accepts, tuple(choices)))
    return found


def _near(number: str, rng: random.Random) -> str:
    """Another number of as many digits."""
    places = [place for place, character in enumerate(number) if character.isdecimal()]
    place = rng.choice(places)
    leads = place == places[0] and len(places) > 1
    digit = rng.choice("123456789" if leads else "0123456789")
    return number[:place] + digit + number[place + 1 :]


def _of_file(path: Path, *, limit: int | None, shots: int) -> QuestionSet:
    """Records with `question`, `answer` and perhaps `choices`; the first ones are the examples."""
    try:
        # str.splitlines would also break a line at U+2028, which JSON allows within a text.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"tasks={path}: cannot be read: {error}") from error
    found = [
        _of_record(line, f"tasks={path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if len(found) <= shots:
        raise RefusedError(
            f"tasks={path}: {len(found)} questions, and {shots} are wanted as examples (shots=...)"
        )
    if len({bool(question.choices) for question in found}) > 1:
        raise RefusedError(f"tasks={path}: some questions have choices and some have not")
    asked = found[shots:] if limit is None else found[shots : shots + limit]
    return QuestionSet(path.stem, tuple(asked), tuple(found[:shots]))


def _of_record(line: str, where: str) -> Question:
    expected = (
        'expected {"question": "text", "answer": "text"}, and for a choice also "choices": ["text",'
        ' "text", ...] with the answer among them, or its number from 0 on'
    )
    try:
        record = json.loads(line)
        text, answer = record["question"], record["answer"]
        choices = record.get("choices") or []
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RefusedError(f"{where}: {expected}; got {line[:60]}") from None
    if choices and not _are_choices(choices):
        raise RefusedError(f"{where}: {expected}; got {line[:60]}")
    if choices and type(answer) is int and 0 <= answer < len(choices):
        answer = choices[answer]
    answer = str(answer) if type(answer) in (int, float) and not choices else answer
    texts = isinstance(text, str) and isinstance(answer, str) and answer != ""
    if not texts or (choices and answer not in choices):
        raise RefusedError(f"{where}: {expected}; got {line[:60]}")
    return Question(text, answer, lambda written: is_correct(answer, written), tuple(choices))


def _are_choices(choices: Any) -> bool:
    texts = isinstance(choices, list) and all(isinstance(one, str) and one for one in choices)
    return texts and len(set(choices)) == len(choices) > 1
