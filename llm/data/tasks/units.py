"""Tasks that turn one unit into another."""

from __future__ import annotations

import random

from llm.data.tasks.task import Task

# A large unit, the small one, and how many of the small one it holds.
_UNITS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000),
    ("tonnes", "kilograms", 1000),
    ("litres", "millilitres", 1000),
    ("minutes", "seconds", 60),
    ("hours", "minutes", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("centuries", "years", 100),
    ("yards", "feet", 3),
    ("feet", "inches", 12),
)


def convert_units(rng: random.Random) -> Task:
    """A whole number of one unit in another; the answer is the number alone."""
    large, small, factor = rng.choice(_UNITS)
    count = rng.randrange(2, 200)
    to_small = rng.random() < 0.5
    if to_small:
        given, unit, wanted, answer = count, large, small, count * factor
    else:
        given, unit, wanted, answer = count * factor, small, large, count
    questions = (
        f"How many {wanted} are {given} {unit}?",
        f"{given} {unit} make how many {wanted}?",
        f"Convert {given} {unit} to {wanted}. Give only the number.",
    )
    return Task(rng.choice(questions), str(answer), "convert_units")
