"""The kinds of task by name, and the tasks they make."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence

from llm.core.spec import RefusedError
from llm.data.tasks import (
    arithmetic,
    dates,
    letters,
    number_lists,
    reasoning_gym,
    stories,
    units,
    word_lists,
)
from llm.data.tasks.task import Task

TASKS: dict[str, Callable[[random.Random], Task]] = {
    kind.__name__: kind
    for kind in (
        arithmetic.small_addition,
        arithmetic.addition,
        arithmetic.subtraction,
        arithmetic.multiplication,
        arithmetic.division,
        arithmetic.remainder,
        arithmetic.parity,
        arithmetic.digit_sum,
        number_lists.largest,
        number_lists.smallest,
        number_lists.sort_numbers,
        number_lists.count_greater,
        number_lists.sequence,
        letters.spell,
        letters.reverse_word,
        letters.nth_letter,
        letters.count_letter,
        letters.count_vowels,
        letters.word_length,
        letters.remove_vowels,
        letters.replace_letter,
        letters.capitals,
        word_lists.sort_words,
        word_lists.count_items,
        word_lists.initials,
        dates.weekday,
        dates.month,
        dates.clock,
        dates.minutes_between,
        units.convert_units,
        stories.buying,
        stories.giving,
        stories.sharing,
        stories.travelling,
    )
}

# Too small to be asked among the others, and too easy.
_BY_NAME_ONLY = {"small_addition"}
# A kind has run out when so many tasks in a row ask what was asked before.
_PATIENCE = 1000


def kinds(path: str | None) -> list[str]:
    """The kinds that a `data.path` names: one of `TASKS`, all (None), or reasoning-gym's.

    Raises:
        RefusedError: reasoning-gym has none such that can be used, or is not installed.
    """
    if path is None:
        return [name for name in TASKS if name not in _BY_NAME_ONLY]
    return reasoning_gym.kinds(path) if path.startswith(reasoning_gym.PREFIX) else [path]


def make(name: str, number: int) -> Task:
    """Item `number` of a kind: the same on every machine and every Python from 3.11 on.

    (Kinds of reasoning-gym are the same for the same version of it, see `version` there.)

    Raises:
        RefusedError: there is no such kind, or it cannot be used.
    """
    if name.startswith(reasoning_gym.PREFIX):
        return reasoning_gym.make(name, number)
    if name not in TASKS:
        raise _unknown(name)
    # The text as one integer: seeding mixes all of its bytes, so neighbouring numbers give
    # unrelated tasks. (Random takes text too, at the price of a hash that is not needed here.)
    # The kinds call only methods of Random whose results are equal in every Python from 3.11 on.
    seed = int.from_bytes(f"{name} {number}".encode(), "big")
    return dataclasses.replace(TASKS[name](random.Random(seed)), number=number)


def tasks(names: Sequence[str], count: int) -> Iterator[Task]:
    """The first `count` tasks that take turns between kinds and never repeat a question.

    A kind whose questions are used up drops out, and the others go on; so there are fewer than
    `count` tasks if all of them run out. Every question is kept in memory, to know it again.

    Args:
        names: the kinds, in the order of their turns.
        count: how many tasks to make.

    Raises:
        RefusedError: an unknown or doubled kind, none at all, or a negative count.
    """
    _check(names)
    if count < 0:
        raise RefusedError(f"count={count}: expected a number of tasks, at least 0")
    return _take_turns(list(names), count)


def _take_turns(names: list[str], count: int) -> Iterator[Task]:
    asked: set[str] = set()
    next_number = dict.fromkeys(names, 0)
    while next_number:
        for name, first in list(next_number.items()):
            if len(asked) == count:
                return
            for number in range(first, first + _PATIENCE):
                task = make(name, number)
                if task.question not in asked:
                    asked.add(task.question)
                    next_number[name] = number + 1
                    yield task
                    break
            else:
                del next_number[name]


def _check(names: Sequence[str]) -> None:
    for name in names:
        if name.startswith(reasoning_gym.PREFIX):
            reasoning_gym.check(name)
        elif name not in TASKS:
            raise _unknown(name)
    if not names or len(set(names)) < len(names):
        raise RefusedError(
            f"tasks={list(names)}: expected one or more kinds, each once. There are "
            f"{', '.join(TASKS)}"
        )


def _unknown(name: str) -> RefusedError:
    return RefusedError(
        f"tasks={name}: no such kind of task. There are {', '.join(TASKS)}, and reasoning_gym/*"
    )
