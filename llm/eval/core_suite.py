"""`suite=core`: one number for every stage of a model's life, from small tasks made up by rule.

In the manner of CORE (Li et al. 2024, DataComp-LM): each task is a text and some ways to go on
with it, the model's pick is the likeliest, its accuracy is centred so that guessing is 0 and all
right is 1, and the score is the mean over tasks. Nothing is asked in a chat template and nothing
has to be written, so a model that has only read texts, one fine-tuned on conversations and one
trained by rewards get the same questions in the same form. Four tasks want no knowledge (what comes
again?), four want language or code, four want knowledge or reckoning. The questions are always the
same ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llm.data.tasks.words import WORDS
from llm.data.tokenizer import Tokenizer
from llm.eval.asking import continuation
from llm.eval.choices import credit, pick
from llm.eval.measures import accuracy, centred_score
from llm.eval.scorer import Query, Scorer

QUESTIONS = 100  # of each task, where no limit is given
_NAMES = ("Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class Item(NamedTuple):
    """A text and ways to go on, of which the first is the right one."""

    text: str
    choices: tuple[str, ...]


def copying(rng: random.Random) -> Item:
    """Words that come a second time in the same order."""
    words = rng.sample(WORDS, 9)
    listed, others = words[:6], words[6:]
    text = f"{' '.join(listed)}\n{' '.join(listed[:4])}"
    return Item(text, (f" {listed[4]}", f" {listed[5]}", f" {listed[1]}", f" {others[0]}"))


def looking_up(rng: random.Random) -> Item:
    """A value that was given to one of several names."""
    names, numbers = rng.sample(_NAMES, 4), rng.sample(range(10, 100), 4)
    pairs = list(zip(names, numbers, strict=True))
    text = "".join(f"The number of {name} is {number}.\n" for name, number in pairs)
    asked = rng.randrange(4)
    order = [asked, *(n for n in range(4) if n != asked)]
    return Item(f"{text}The number of {names[asked]} is", tuple(f" {numbers[n]}." for n in order))


def applying_a_rule(rng: random.Random) -> Item:
    """What was done to three words, done to a fourth."""
    words = rng.sample(WORDS, 4)
    rules: tuple[Callable[[str], str], ...] = (
        str.upper, lambda w: f"{w} {w}", lambda w: f"({w})", lambda w: w[0],
    )  # fmt: skip
    right, *wrong = rng.sample(rules, 4)
    text = "".join(f"{word} = {right(word)}\n" for word in words[:3])
    return Item(f"{text}{words[3]} =", tuple(f" {rule(words[3])}\n" for rule in (right, *wrong)))


def closing_brackets(rng: random.Random) -> Item:
    """The bracket that is open."""
    pairs = ("()", "[]", "{}", "<>")
    stack: list[str] = []
    text = ""
    for _ in range(rng.randrange(5, 14)):
        if stack and rng.random() < 0.4:
            text += f" {stack.pop()[1]}"
        else:
            stack.append(rng.choice(pairs))
            text += f" {stack[-1][0]}"
    if not stack:
        stack.append(rng.choice(pairs))
        text += f" {stack[-1][0]}"
    right = stack[-1]
    return Item(text.strip(), tuple(f" {p[1]}" for p in (right, *(q for q in pairs if q != right))))


def agreeing(rng: random.Random) -> Item:
    """A verb that agrees with its subject, across a noun of the other number."""
    nouns = ("boy", "girl", "teacher", "doctor", "driver", "farmer", "sister", "brother")
    places = ("house", "car", "tree", "garden", "shop", "river", "bridge", "school")
    noun, place, plural = rng.choice(nouns), rng.choice(places), rng.random() < 0.5
    subject = noun + "s" * plural
    other = place + "s" * (not plural)
    verbs = rng.choice(((" is", " are"), (" was", " were"), (" has", " have")))
    right, wrong = verbs[plural], verbs[not plural]
    return Item(f"The {subject} near the {other}", (right, wrong))


def ordering_words(rng: random.Random) -> Item:
    """A sentence, and the same words in another order."""
    name, friend = rng.sample(_NAMES, 2)
    thing, adjective = (
        rng.choice(("book", "letter", "ball", "cup")),
        rng.choice(("old", "new", "small")),
    )
    sentence = rng.choice(
        (
            f"{name} gave the {adjective} {thing} to {friend}.",
            f"There is a {adjective} {thing} on the table.",
            f"{name} and {friend} went to the house of the doctor.",
            f"I do not know where {name} has put the {thing}.",
        )
    )
    words = sentence.removesuffix(".").split()
    shuffled = words.copy()
    while shuffled == words:
        rng.shuffle(shuffled)
    return Item("", (sentence, f"{' '.join(shuffled)}."))


def referring(rng: random.Random) -> Item:
    """A pronoun that fits the only person in a sentence."""
    who, right, wrong = rng.choice(
        (
            ("man", "his", "her"), ("woman", "her", "his"), ("king", "his", "her"),
            ("queen", "her", "his"), ("father", "his", "her"), ("mother", "her", "his"),
            ("boy", "his", "her"), ("girl", "her", "his"),
        )
    )  # fmt: skip
    verb = rng.choice(("lost", "found", "sold", "opened", "forgot", "washed"))
    thing = rng.choice(("hat", "book", "keys", "coat", "bag", "letter"))
    return Item(f"The {who} {verb}", (f" {right} {thing}.", f" {wrong} {thing}."))


def naming_variables(rng: random.Random) -> Item:
    """A name that Python code has given a value, and names that it has not."""
    names = rng.sample(("total", "count", "width", "height", "index", "value", "limit", "size"), 5)
    (a, b), others = names[:2], names[2:]
    operator = rng.choice("+-*")
    text = f"def compute({a}, {b}):\n    return {a} {operator}"
    return Item(text, (f" {b}\n", *(f" {other}\n" for other in others)))


def counting_on(rng: random.Random) -> Item:
    """The next number of an even progression."""
    start, step = rng.randrange(1, 30), rng.randrange(1, 8)
    shown = [start + step * n for n in range(5)]
    end = shown[-1] + step
    wrong = rng.sample([n for n in range(max(end - 9, 1), end + 10) if n != end], 3)
    return Item(", ".join(map(str, shown)) + ",", tuple(f" {n}," for n in (end, *wrong)))


def naming_days(rng: random.Random) -> Item:
    """The day or the month that comes after some others."""
    cycle = rng.choice((_DAYS, _MONTHS))
    start = rng.randrange(len(cycle))
    shown = [cycle[(start + n) % len(cycle)] for n in range(3)]
    right = cycle[(start + 3) % len(cycle)]
    wrong = rng.sample([name for name in cycle if name not in (*shown, right)], 3)
    return Item(", ".join(shown) + ",", tuple(f" {name}," for name in (right, *wrong)))


def adding(rng: random.Random) -> Item:
    """The sum of two small numbers, after three examples."""

    def line() -> tuple[str, int]:
        a, b = rng.randrange(1, 20), rng.randrange(1, 20)
        return f"{a} + {b} =", a + b

    text = "".join(f"{question} {answer}\n" for question, answer in (line() for _ in range(3)))
    question, end = line()
    wrong = rng.sample([n for n in range(max(end - 6, 2), end + 7) if n != end], 3)
    return Item(text + question, tuple(f" {n}\n" for n in (end, *wrong)))


def comparing(rng: random.Random) -> Item:
    """The larger of two numbers, after three examples."""

    def line() -> tuple[str, int, int]:
        a, b = rng.sample(range(1, 100), 2)
        return f"Of {a} and {b} the larger is", max(a, b), min(a, b)

    text = "".join(f"{question} {more}.\n" for question, more, _ in (line() for _ in range(3)))
    question, more, less = line()
    return Item(text + question, (f" {more}.", f" {less}."))


TASKS: dict[str, Callable[[random.Random], Item]] = {
    task.__name__: task
    for task in (
        *(copying, looking_up, applying_a_rule, closing_brackets),
        *(agreeing, ordering_words, referring, naming_variables),
        *(counting_on, naming_days, adding, comparing),
    )
}


def items(name: str, count: int) -> list[Item]:
    """The first so many items of a task: the same ones on every machine, none twice."""
    found: dict[Item, None] = {}
    number = 0
    while len(found) < count and number < 100 * count:
        found[TASKS[name](random.Random(int.from_bytes(f"core {name} {number}".encode())))] = None
        number += 1
    return list(found)


def core_suite(scorer: Scorer, tokenizer: Tokenizer, limit: int | None = None) -> dict[str, Any]:
    """The score of a model, and its accuracy in each task.

    Args:
        scorer: of the model; of a text longer than its context only the end is seen.
        tokenizer: of the model.
        limit: questions of each task; None: 100, or as many as there are.

    Raises:
        NotFiniteError: the probability of a choice is no number.
    """
    by_task = {name: items(name, limit or QUESTIONS) for name in TASKS}
    queries = [
        _query(item, tokenizer, scorer.context) for of_task in by_task.values() for item in of_task
    ]
    scores = iter(scorer(queries))
    right: dict[str, list[float]] = {}
    for name, of_task in by_task.items():
        where = f"suite core, task {name}"
        picks = (pick(next(scores), item.choices, where) for item in of_task)
        right[name] = [credit(picked.in_all, 0) for picked in picks]
    chances = {name: 1 / len(of_task[0].choices) for name, of_task in by_task.items()}
    return {
        **centred_score(right, chances),
        "tasks": {name: accuracy(right[name], chances[name]) for name in TASKS},
    }


def _query(item: Item, tokenizer: Tokenizer, context: int) -> Query:
    before = [tokenizer.start_id, *tokenizer.encode(item.text)]
    after: Sequence[list[int]] = [
        continuation(tokenizer, item.text, choice)[:context] for choice in item.choices
    ]
    room = context - max(map(len, after)) + 1
    return Query(before[-room:], after)
