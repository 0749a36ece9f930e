"""Figures and their intervals, against enumeration and known values."""

import numpy as np
import pytest

from llm.eval.intervals import bootstrap, wilson
from llm.eval.measures import accuracy, centred_score, pass_at


def test_pass_at_of_several_questions() -> None:
    found = pass_at([0, 2, 5], 5)
    assert list(found) == ["1", "2", "4"]
    assert found["1"]["value"] == pytest.approx((0 + 0.4 + 1) / 3)
    low, high = found["1"]["interval_95"]
    assert low <= found["1"]["value"] <= high
    assert pass_at([0, 0], 2)["1"]["interval_95"] is None


def test_wilson() -> None:
    # R's prop.test(x, n, correct = FALSE).
    assert wilson(15, 50) == pytest.approx((0.1910, 0.4375), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    for right, n in [(1, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="right of"):
            wilson(right, n)


def test_bootstrap_is_as_wide_as_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (400, 1))
    low, high = bootstrap([values], lambda means: means[0][0])
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert bootstrap([values, values[:1]], lambda means: means[0][0]) is None


def test_the_centred_score_is_a_mean_over_tasks() -> None:
    right = {"a": [True] * 3 + [False], "b": [True, False] * 10}
    found = centred_score(right, {"a": 0.25, "b": 0.5})
    assert found["score"] == pytest.approx(((0.75 - 0.25) / 0.75 + 0) / 2)
    low, high = found["score_95"]
    assert low < found["score"] < high
    assert accuracy(right["a"], 0.25)["accuracy_95"] == wilson(3, 4)
