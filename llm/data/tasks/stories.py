"""Word problems: a short story that asks for a number."""

from __future__ import annotations

import random

from llm.data.tasks.task import Task

_NAMES = (
    *("Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas"),
    *("Karim", "Lena", "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tara", "Yuki"),
)
_THINGS = (
    *("apples", "marbles", "pencils", "stamps", "shells", "books", "cookies", "coins"),
    *("cards", "stickers", "plums", "buttons", "balloons", "candles", "stones", "cups"),
)
_WARES = ("pens", "cakes", "tickets", "lamps", "plants", "shirts", "hats", "toys")


def buying(rng: random.Random) -> Task:
    """What several equal things and one more cost: a product and a sum."""
    name, wares = rng.choice(_NAMES), rng.choice(_WARES)
    count, price, extra = rng.randrange(2, 13), rng.randrange(2, 21), rng.randrange(1, 51)
    questions = (
        f"{name} buys {count} {wares} for {price} coins each and a bag for {extra} coins. "
        "How many coins is that in all?",
        f"One of the {wares} in a shop costs {price} coins. {name} takes {count} of them and a "
        f"map that costs {extra} coins. How many coins must {name} pay?",
    )
    return Task(rng.choice(questions), str(count * price + extra), "buying")


def giving(rng: random.Random) -> Task:
    """What is left after giving some away and getting some more: a difference and a sum."""
    (name, friend), things = rng.sample(_NAMES, 2), rng.choice(_THINGS)
    had, gets = rng.randrange(5, 100), rng.randrange(2, 50)
    gives = rng.randrange(1, had)
    questions = (
        f"{name} has {had} {things}, gives {gives} of them to {friend} and then finds {gets} "
        f"more. How many {things} does {name} have now?",
        f"{friend} gets {gives} of the {had} {things} that {name} owns. Later {name} buys "
        f"{gets} new ones. How many {things} does {name} own in the end?",
    )
    return Task(rng.choice(questions), str(had - gives + gets), "giving")


def sharing(rng: random.Random) -> Task:
    """How many each friend gets when things are shared out evenly: a quotient."""
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    friends, each = rng.randrange(2, 13), rng.randrange(2, 41)
    total = friends * each
    questions = (
        f"{name} shares {total} {things} equally among {friends} friends. How many {things} "
        "does each friend get?",
        f"{total} {things} are packed into {friends} boxes with the same number in each. How "
        "many are in one box?",
        f"{friends} children divide {total} {things} evenly. How many {things} are there for "
        "each child?",
    )
    return Task(rng.choice(questions), str(total // friends), "sharing")


def travelling(rng: random.Random) -> Task:
    """Distance, or the time it takes, at an even speed: a product or a quotient."""
    name, speed, hours = rng.choice(_NAMES), rng.randrange(3, 121), rng.randrange(2, 13)
    distance = speed * hours
    question, answer = rng.choice(
        (
            (
                f"{name} travels {hours} hours at {speed} km per hour. How many km is that?",
                distance,
            ),
            (
                f"A train runs at {speed} km per hour. How many km does it go in {hours} hours?",
                distance,
            ),
            (
                f"{name} drives {distance} km at {speed} km per hour. How many hours does it take?",
                hours,
            ),
            (
                f"A ship needs {hours} hours for {distance} km. How many km does it go per hour?",
                speed,
            ),
        )
    )
    return Task(question, str(answer), "travelling")
