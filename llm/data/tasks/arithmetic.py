"""Tasks about two numbers or one: sums, products, remainders, digits."""

from __future__ import annotations

import random

from llm.data.tasks.task import Task


def small_addition(rng: random.Random) -> Task:
    """The sum of two numbers from 1 to 20: 400 questions in all."""
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    question = f"What is {a} + {b}? Answer with the number only."
    return Task(question, str(a + b), "small_addition")


def addition(rng: random.Random) -> Task:
    """The sum of two numbers of up to four digits."""
    a, b = _number(rng, 4), _number(rng, 4)
    questions = (
        f"What is {a} + {b}?",
        f"Add {a} and {b}.",
        f"Calculate {a} plus {b}.",
        f"Find the sum of {a} and {b}.",
    )
    return Task(rng.choice(questions), str(a + b), "addition")


def subtraction(rng: random.Random) -> Task:
    """The difference of two numbers of up to four digits; never below zero."""
    b, a = sorted((_number(rng, 4), _number(rng, 4)))
    questions = (
        f"What is {a} - {b}?",
        f"Subtract {b} from {a}.",
        f"Calculate {a} minus {b}.",
        f"Take {b} away from {a}. What is left?",
    )
    return Task(rng.choice(questions), str(a - b), "subtraction")


def multiplication(rng: random.Random) -> Task:
    """The product of a number of up to three digits and one of up to two."""
    a, b = _number(rng, 3), _number(rng, 2)
    questions = (
        f"What is {a} * {b}?",
        f"Multiply {a} by {b}.",
        f"Calculate {a} times {b}.",
        f"Find the product of {a} and {b}.",
    )
    return Task(rng.choice(questions), str(a * b), "multiplication")


def division(rng: random.Random) -> Task:
    """A quotient of up to three digits, without remainder."""
    quotient, b = _number(rng, 3), rng.randrange(2, 21)
    a = quotient * b
    questions = (
        f"What is {a} / {b}?",
        f"Divide {a} by {b}.",
        f"Calculate {a} divided by {b}.",
        f"Which number times {b} makes {a}?",
    )
    return Task(rng.choice(questions), str(quotient), "division")


def remainder(rng: random.Random) -> Task:
    """What is left of a number of up to four digits after division."""
    a, b = _number(rng, 4), rng.randrange(2, 13)
    questions = (
        f"What is the remainder when {a} is divided by {b}?",
        f"Divide {a} by {b}. What is the remainder?",
        f"What is {a} modulo {b}?",
    )
    return Task(rng.choice(questions), str(a % b), "remainder")


def parity(rng: random.Random) -> Task:
    """Odd or even, for a number of up to six digits."""
    a = _number(rng, 6)
    questions = (
        f"Is {a} odd or even?",
        f"Even or odd: {a}?",
        f"Say whether the number {a} is even or odd.",
    )
    return Task(rng.choice(questions), ("even", "odd")[a % 2], "parity", any_case=True)


def digit_sum(rng: random.Random) -> Task:
    """The sum of the digits of a number of two to six digits."""
    a = 10 * _number(rng, 5) + rng.randrange(10)
    questions = (
        f"What is the sum of the digits of {a}?",
        f"Add up the digits of {a}.",
        f"What do the digits of {a} add up to?",
    )
    return Task(rng.choice(questions), str(sum(map(int, str(a)))), "digit_sum")


def _number(rng: random.Random, most_digits: int) -> int:
    """A positive number; each count of digits is equally likely."""
    digits = rng.randrange(most_digits)
    return rng.randrange(10**digits, 10 ** (digits + 1))
