"""pass@k against enumeration."""

import itertools

import numpy as np
import pytest

from llm.report.pass_at_k import ks, pass_at_k


@pytest.mark.parametrize(
    ("n", "right", "k"), [(5, 2, 1), (5, 2, 3), (5, 4, 2), (6, 0, 2), (4, 4, 4)]
)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int, right: int, k: int) -> None:
    answers = [True] * right + [False] * (n - right)
    subsets = [any(subset) for subset in itertools.combinations(answers, k)]
    assert pass_at_k(n, right, k) == pytest.approx(np.mean(subsets))


def test_pass_at_k_refuses_what_cannot_be() -> None:
    for n, right, k in [(3, 4, 1), (3, 1, 4), (3, 1, 0)]:
        with pytest.raises(ValueError, match=f"n={n}"):
            pass_at_k(n, right, k)


def test_the_ks_that_are_shown() -> None:
    assert (ks(1), ks(5), ks(8)) == ([1], [1, 2, 4], [1, 2, 4, 8])
