"""The kinds of task of the package reasoning-gym: `reasoning_gym/leg_counting` and many more.

https://github.com/open-thought/reasoning-gym, arXiv 2505.24760. The package is optional, and only
imported when one of its kinds is asked for. Each kind is tried before it is used: one that cannot
be made or judged is refused, or left out of a pattern, with the reason.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import importlib.metadata
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llm.core.spec import RefusedError
from llm.data.tasks.task import Task

PREFIX = "reasoning_gym/"

# What trying once does not tell, found in version 0.1.25.
_HASH_SEED = "its questions follow Python's hash seed, and differ from process to process"
_UNFIT = {
    "codeio": _HASH_SEED,
    "isomorphic_strings": _HASH_SEED,
    "knight_swap": _HASH_SEED,
    "ransom_note": _HASH_SEED,
    "word_ladder": _HASH_SEED,
    "number_sequence": "some of its numbers grow so fast that making a question never ends",
}
# What a scorer that might run a completion as Python calls; sympy's parse_expr is an eval.
_RUNS_CODE = {"eval", "exec", "parse_expr"}
# A data set draws its entry i from seed + i. So item `number` is entry `number % _BLOCK` of the
# data set whose seed is the rest, and no two items are drawn from the same number.
_BLOCK = 1000
# So many entries in a row may be ones that cannot be made, or whose own answer is not accepted.
_PATIENCE = 10


@dataclass(frozen=True)
class GymTask(Task):
    """A task that its data set judges: other answers than the one given may be right too.

    Args:
        dataset: reasoning-gym's data set.
        entry: its question and answer, and what else it needs to judge an answer.
    """

    dataset: Any = field(kw_only=True, repr=False, compare=False)
    entry: dict[str, Any] = field(kw_only=True, repr=False, compare=False)

    def accepts(self, completion: str) -> bool:
        """Whether a completion scores 1, white space around it aside; partial credit is none."""
        answer = completion.strip()
        if not answer:
            return False
        try:
            with _on_its_own(seed=0):
                return bool(self.dataset.score_answer(answer, self.entry) == 1)
        except Exception:  # Some scorers fail on what is not of the form they expect.
            return False


def kinds(pattern: str) -> list[str]:
    """The kinds that a name such as `reasoning_gym/dice` or `reasoning_gym/*_arithmetic` means.

    Those that cannot be used are left out, and a warning tells why.

    Raises:
        RefusedError: none of them can be used, there are none, or the package is not installed.
    """
    from loguru import logger

    names = fnmatch.filter(_names(), pattern)
    if not names:
        raise _unknown(pattern)
    usable: list[str] = []
    unfit: dict[str, list[str]] = {}
    for name in names:
        flaw = _flaw(name)
        (unfit.setdefault(flaw, []) if flaw else usable).append(name)
    reasons = "; ".join(
        f"{', '.join(name.removeprefix(PREFIX) for name in those)}: {flaw}"
        for flaw, those in unfit.items()
    )
    if not usable:
        raise RefusedError(f"tasks={pattern}: cannot be used. {reasons}")
    if unfit:
        logger.warning(
            "tasks={}: {} of {} kinds. Left out: {}", pattern, len(usable), len(names), reasons
        )
    return usable


def check(name: str) -> None:
    """Refuse a kind that there is not, or that cannot be used."""
    if name not in _names():
        raise _unknown(name)
    if flaw := _flaw(name):
        raise RefusedError(f"tasks={name}: {flaw}")


def make(name: str, number: int) -> GymTask:
    """Item `number` of a kind, or the first after it that is sound: always the same.

    Raises:
        RefusedError: there is no such kind, or it cannot be used.
    """
    check(name)
    for later in range(number, number + _PATIENCE):
        task, flaw = _try(name, later)
        if task:
            return task
    raise RefusedError(f"tasks={name}: no sound question from number {number} on: {flaw}")


def version() -> str:
    """The installed version: another one may ask other questions."""
    return importlib.metadata.version("reasoning-gym")


@functools.cache
def _flaw(name: str) -> str:
    """Why a kind cannot be used; '' if it can."""
    kind = name.removeprefix(PREFIX)
    if kind in _UNFIT:
        return _UNFIT[kind]
    scorer = _factory().DATASETS[kind][0].score_answer
    if _RUNS_CODE.intersection(scorer.__code__.co_names):
        return "its scorer may run what a model writes as Python code"
    return _try(name, 0)[1]


def _try(name: str, number: int) -> tuple[GymTask | None, str]:
    """A sound task and '', or None and what is wrong."""
    try:
        with _on_its_own(seed=number):
            dataset = _dataset(name, number - number % _BLOCK)
            entry = dataset[number % _BLOCK]
    except Exception as error:  # whatever can happen in a hundred generators
        return None, f"making a question fails ({type(error).__name__}: {error})"
    question, answer = entry["question"], entry["answer"]
    if not isinstance(answer, str):
        return None, "its questions come without an answer"
    task = GymTask(question, answer, name, number=number, dataset=dataset, entry=entry)
    if not task.accepts(answer):
        return None, "its scorer refuses the answer that it gives"
    if task.accepts("nonsense"):
        return None, "its scorer accepts nonsense"
    return task, ""


@functools.lru_cache(maxsize=256)
def _dataset(name: str, seed: int) -> Any:
    kind = name.removeprefix(PREFIX)
    return _factory().create_dataset(kind, seed=seed, size=_BLOCK)


@contextlib.contextmanager
def _on_its_own(seed: int) -> Iterator[None]:
    """Hides what is printed, and keeps `random`, which some kinds draw from, to that seed."""
    state = random.getstate()
    random.seed(seed)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(state)


def _names() -> list[str]:
    return [PREFIX + kind for kind in _factory().DATASETS]


def _factory() -> Any:
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise RefusedError(
            f'tasks={PREFIX}...: {error}. Install it: pip install -e ".[reasoning-gym]"'
        ) from None
    return factory


def _unknown(name: str) -> RefusedError:
    near = difflib.get_close_matches(name, _names(), n=5, cutoff=0)
    return RefusedError(f"tasks={name}: no such kind of task. Near it: {', '.join(near)}")
