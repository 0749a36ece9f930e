"""Tasks about days of the week, months and the clock."""

from __future__ import annotations

import random

from llm.data.tasks.task import Task

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAY_MINUTES = 24 * 60


def weekday(rng: random.Random) -> Task:
    """The day of the week up to a year before or after another."""
    today, days = rng.randrange(7), rng.randrange(2, 366)
    day = _DAYS[today]
    if rng.random() < 0.5:
        questions: tuple[str, ...] = (
            f"Today is {day}. Which day of the week is it in {days} days?",
            f"Which day of the week comes {days} days after a {day}?",
            f"If it is {day} now, what day of the week will it be {days} days from now?",
        )
    else:
        days = -days
        questions = (
            f"Today is {day}. Which day of the week was it {-days} days ago?",
            f"Which day of the week comes {-days} days before a {day}?",
        )
    answer = _DAYS[(today + days) % 7]
    return Task(rng.choice(questions), answer, "weekday", any_case=True)


def month(rng: random.Random) -> Task:
    """The month up to 100 months before or after another."""
    now, months = rng.randrange(12), rng.randrange(2, 101)
    if rng.random() < 0.5:
        questions: tuple[str, ...] = (
            f"It is {_MONTHS[now]}. Which month is it in {months} months?",
            f"Which month comes {months} months after {_MONTHS[now]}?",
        )
    else:
        months = -months
        questions = (
            f"It is {_MONTHS[now]}. Which month was it {-months} months ago?",
            f"Which month comes {-months} months before {_MONTHS[now]}?",
        )
    answer = _MONTHS[(now + months) % 12]
    return Task(rng.choice(questions), answer, "month", any_case=True)


def clock(rng: random.Random) -> Task:
    """The time some minutes before or after another, on the 24-hour clock."""
    start, minutes = rng.randrange(_DAY_MINUTES), rng.randrange(2, 200)
    time = _time(start)
    if rng.random() < 0.5:
        questions: tuple[str, ...] = (
            f"A clock shows {time}. What does it show {minutes} minutes later (24-hour, HH:MM)?",
            f"What time is {minutes} minutes after {time}? Use the 24-hour form HH:MM.",
        )
    else:
        minutes = -minutes
        questions = (
            f"A clock shows {time}. What did it show {-minutes} minutes before (24-hour, HH:MM)?",
            f"What time is {-minutes} minutes before {time}? Use the 24-hour form HH:MM.",
        )
    return Task(rng.choice(questions), _time((start + minutes) % _DAY_MINUTES), "clock")


def minutes_between(rng: random.Random) -> Task:
    """How many minutes lie between two times of one day."""
    start, end = sorted(rng.sample(range(_DAY_MINUTES), 2))
    questions = (
        f"How many minutes pass from {_time(start)} to {_time(end)} on the same day?",
        f"A film starts at {_time(start)} and ends at {_time(end)}. How many minutes is it long?",
        f"How many minutes after {_time(start)} is {_time(end)} (same day, 24-hour clock)?",
    )
    return Task(rng.choice(questions), str(end - start), "minutes_between")


def _time(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
