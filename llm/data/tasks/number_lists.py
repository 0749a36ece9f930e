"""Tasks about several numbers: extremes, order, counting, progressions."""

from __future__ import annotations

import random

from llm.data.tasks.task import Task


def largest(rng: random.Random) -> Task:
    """The largest of two to six numbers."""
    numbers = _numbers(rng)
    listed = _listed(numbers)
    questions = (
        f"Which of these numbers is the largest: {listed}?",
        f"What is the greatest number in the list {listed}?",
        f"Find the maximum of {listed}.",
    )
    return Task(rng.choice(questions), str(max(numbers)), "largest")


def smallest(rng: random.Random) -> Task:
    """The smallest of two to six numbers."""
    numbers = _numbers(rng)
    listed = _listed(numbers)
    questions = (
        f"Which of these numbers is the smallest: {listed}?",
        f"What is the least number in the list {listed}?",
        f"Find the minimum of {listed}.",
    )
    return Task(rng.choice(questions), str(min(numbers)), "smallest")


def sort_numbers(rng: random.Random) -> Task:
    """Two to six numbers in ascending or descending order."""
    numbers = _numbers(rng)
    listed = _listed(numbers)
    descending = rng.random() < 0.5
    order = ("from smallest to largest", "from largest to smallest")[descending]
    questions = (
        f"Sort these numbers {order}: {listed}",
        f"Write the numbers {listed} in order {order}.",
        f"Put {listed} in {('ascending', 'descending')[descending]} order.",
    )
    answer = _listed(sorted(numbers, reverse=descending))
    return Task(rng.choice(questions), answer, "sort_numbers")


def count_greater(rng: random.Random) -> Task:
    """How many of two to six numbers are greater than one that is not among them."""
    limit, *numbers = _numbers(rng, fewest=3, most=7)
    listed = _listed(numbers)
    questions = (
        f"How many of these numbers are greater than {limit}: {listed}?",
        f"Count the numbers above {limit} in the list {listed}.",
        f"In the list {listed}, how many numbers are larger than {limit}?",
    )
    return Task(rng.choice(questions), str(sum(n > limit for n in numbers)), "count_greater")


def sequence(rng: random.Random) -> Task:
    """The next number of an arithmetic progression, of which three to five are shown."""
    start, step = rng.randrange(-20, 200), rng.choice((-1, 1)) * rng.randrange(1, 26)
    shown = rng.randrange(3, 6)
    listed = _listed([start + step * n for n in range(shown)])
    questions = (
        f"The same amount is added at each step: {listed}. What is the next number?",
        f"Continue this arithmetic progression with one more number: {listed}",
        f"What comes next if the numbers change evenly: {listed}?",
    )
    return Task(rng.choice(questions), str(start + step * shown), "sequence")


def _numbers(rng: random.Random, fewest: int = 2, most: int = 6) -> list[int]:
    """Distinct numbers of a like size; in a quarter of the lists some are below zero."""
    size = rng.choice((20, 100, 1000, 10_000))
    lowest = -size if rng.random() < 0.25 else 0
    return rng.sample(range(lowest, size), rng.randrange(fewest, most + 1))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
