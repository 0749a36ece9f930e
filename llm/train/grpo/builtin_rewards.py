"""The rewards that come with the package."""

from __future__ import annotations

import functools
import importlib
import logging
import re
from decimal import Decimal
from typing import Any

from llm.core.spec import RefusedError
from llm.data.tasks import reasoning_gym, registry
from llm.data.tasks.task import Task
from llm.data.tasks.verifier import is_correct
from llm.train.grpo.example import Example, Reward

# A minus sign after a letter, a digit or a bracket takes away; it is not the number's.
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)])[-\u2212])?\$?"
    r"(?P<size>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![.\w])\.[0-9]+)"
)
# By these math-verify finds formulas in a text.
_FORMULA_MARKS = ("$", r"\(", r"\[", r"\boxed")


def correct(completion: str, example: Example) -> float | None:
    """Whether the completion is the answer and nothing else; a task's own rule where it is one."""
    if example.answer is None:
        return None
    kind, number = example.fields.get("task"), example.fields.get("number")
    if isinstance(kind, str) and isinstance(number, int) and _is_kind(kind):
        return float(_task(kind, number).accepts(completion))
    return float(is_correct(example.answer, completion))


def _is_kind(name: str) -> bool:
    return name in registry.TASKS or name.startswith(reasoning_gym.PREFIX)


@functools.lru_cache(maxsize=4096)
def _task(kind: str, number: int) -> Task:
    return registry.make(kind, number)


def last_number(completion: str, example: Example) -> float | None:
    """Whether the last number of the completion is the last number of the answer.

    Commas between thousands, a dollar sign, and zeros at the end of a fraction do not count.
    """
    if example.answer is None or (answer := _last_number(example.answer)) is None:
        return None
    return float(_last_number(completion) == answer)


def _last_number(text: str) -> Decimal | None:
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    sign = "-" if found[-1]["minus"] else ""
    return Decimal(sign + found[-1]["size"].replace(",", ""))


def math(completion: str, example: Example) -> float | None:
    """Whether the completion is mathematically equal to the answer, as math-verify sees it.

    The answer is a formula, or a text with formulas in `$...$` or `\\boxed{...}`; of a text like
    GSM8K's, what follows its `####`. In a completion, LaTeX needs such marks too.
    """
    if example.answer is None or not (answer := _formulas(example.answer)):
        return None
    parse, verify = _math_verify().parse, _math_verify().verify
    # Its own limits of time would only get in the way of ours.
    given = parse(completion, parsing_timeout=None)
    return float(verify(answer, given, timeout_seconds=None))


@functools.lru_cache(maxsize=4096)
def _formulas(answer: str) -> Any:
    """What math-verify compares with; empty if it finds nothing."""
    text = answer.rpartition("####")[2].strip()
    # Of a formula without marks it would read the first number: 2 for 2\sqrt{3}.
    if text and not any(mark in text for mark in _FORMULA_MARKS):
        text = f"${text}$"
    return _math_verify().parse(text, parsing_timeout=None)


def _math_verify() -> Any:
    try:
        module = importlib.import_module("math_verify")
    except ImportError as error:
        raise RefusedError(f'rewards=math: {error}. Install it: pip install -e ".[math]"') from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no limits
    return module


REWARDS: dict[str, Reward] = {"correct": correct, "last_number": last_number, "math": math}


def prepare(name: str) -> None:
    """Load what a reward needs, so that its first call takes no longer than the others.

    Raises:
        RefusedError: that is not installed.
    """
    if name == "math":
        _math_verify()
