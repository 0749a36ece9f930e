import math

import pytest

from llm.report.best import Scores, direction
from llm.report.numbers import clock, number, si


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (999, "999"), (0.123, "0.12"), (12.34, "12.3"), (1234567, "1.23M"),
        (999_600, "1.00M"), (99_950, "100k"), (10e9, "10.0B"), (-1500, "-1.50k"), (math.nan, "-"),
    ],
)  # fmt: skip
def test_si(value, text):
    assert si(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (90061, "1d 1:01:01"), (math.inf, "-")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_number():
    assert [number(v) for v in (2.31415, 3e-4, None, math.nan, 0.0)] == [
        "2.3142", "3.000e-04", "-", "-", "0.0000",
    ]  # fmt: skip


def test_best_looks_in_the_right_direction_and_past_what_is_not_finite():
    scores = Scores()
    for step, loss, reward in ((1, 3.0, 0.1), (2, 2.0, 0.5), (3, math.nan, None), (4, 2.5, 0.4)):
        scores.add(step, {"eval/loss": loss, "reward/mean": reward, "train/lr": 0.1})
    assert scores.best == {
        "eval/loss": {"value": 2.0, "step": 2},
        "reward/mean": {"value": 0.5, "step": 2},
    }
    assert scores.last == {"eval/loss": 2.5, "reward/mean": 0.4, "train/lr": 0.1}
    assert direction("policy/loss") == direction("train/lr") == 0


def test_a_policys_loss_is_neither_better_nor_worse() -> None:
    scores = Scores()
    scores.add(1, {"train/loss": 0.5, "reward/mean": 0.1, "policy/ratio": 1.0})
    scores.add(2, {"train/loss": 0.25, "policy/ratio": 1.1})
    assert scores.last["train/loss"] == 0.25
    assert scores.best.keys() == {"reward/mean"}
