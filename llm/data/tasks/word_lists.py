"""Tasks about several words."""

from __future__ import annotations

import random

from llm.data.tasks.task import Task
from llm.data.tasks.words import WORDS


def sort_words(rng: random.Random) -> Task:
    """Three to six words in the order of the alphabet."""
    words = _words(rng, 6)
    listed = ", ".join(words)
    questions = (
        f"Sort these words alphabetically: {listed}",
        f"Put the words {listed} in alphabetical order.",
        f"In which order does a dictionary list these words: {listed}?",
    )
    return Task(rng.choice(questions), ", ".join(sorted(words)), "sort_words", any_case=True)


def count_items(rng: random.Random) -> Task:
    """How many words a list of three to twelve has."""
    words = _words(rng, 12)
    listed = ", ".join(words)
    questions = (
        f"How many words are in this list: {listed}?",
        f"Count the items: {listed}",
        f"How many things are named here? {listed}",
    )
    return Task(rng.choice(questions), str(len(words)), "count_items")


def initials(rng: random.Random) -> Task:
    """The first letters of three to six words, written as one word."""
    words = _words(rng, 6)
    listed = " ".join(words)
    questions = (
        f'Join the first letters of the words in "{listed}".',
        f'Which string do the initials of "{listed}" form?',
        f'Take the first letter of each word and write them together: "{listed}"',
    )
    answer = "".join(word[0] for word in words)
    return Task(rng.choice(questions), answer, "initials", any_case=True)


def _words(rng: random.Random, most: int) -> list[str]:
    return rng.sample(WORDS, rng.randrange(3, most + 1))
