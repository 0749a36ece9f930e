"""argmax in two reductions."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.argmax import argmax


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_first_of_the_largest(shape: tuple[int, ...], dtype: str) -> None:
    rounded = np.random.default_rng(0).integers(-3, 4, shape)  # many are equal
    scores = jnp.asarray(rounded, dtype)
    assert (argmax(scores) == jnp.argmax(scores, axis=-1)).all()


def test_forbidden_and_broken_scores_give_a_token_too() -> None:
    scores = jnp.array([[-jnp.inf] * 3, [-jnp.inf, 0, -jnp.inf], [0, jnp.inf, 1], [jnp.nan] * 3])
    assert argmax(scores).tolist() == [0, 1, 1, 2]
