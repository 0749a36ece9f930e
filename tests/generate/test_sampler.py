"""Draws from a small vocabulary against exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.generate.sampler import sample_token

LOGITS_V = np.log([0.5, 0.25, 0.15, 0.07, 0.03]).astype(np.float32)
DRAWS = 20_000

draw = jax.jit(sample_token, static_argnames=("temperature", "top_p"))


def frequencies(temperature: float, top_p: float = 1.0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), DRAWS)
    logits = jnp.broadcast_to(LOGITS_V, (DRAWS, len(LOGITS_V)))
    tokens = draw(logits, keys, temperature=temperature, top_p=top_p)
    return np.bincount(np.asarray(tokens), minlength=len(LOGITS_V)) / DRAWS


def within_noise(found: np.ndarray, exact: np.ndarray) -> bool:
    """Five standard deviations of a share of so many draws; an impossible token is never drawn."""
    return bool(np.all(np.abs(found - exact) <= 5 * np.sqrt(exact * (1 - exact) / DRAWS)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    exact = np.exp(LOGITS_V / temperature)
    assert within_noise(frequencies(temperature), exact / exact.sum())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, 1), (0.6, 2), (0.8, 3), (0.95, 4), (0.999, 5), (1e-9, 1)]
)
def test_top_p_keeps_the_smallest_set_that_holds_so_much(top_p: float, kept: int) -> None:
    exact = np.where(np.arange(len(LOGITS_V)) < kept, np.exp(LOGITS_V), 0)
    assert within_noise(frequencies(1.0, top_p), exact / exact.sum())


def test_top_p_acts_on_the_tempered_distribution() -> None:
    """At temperature 0.5 the likeliest token holds 0.72, so that 0.6 keeps it alone."""
    assert frequencies(0.5, 0.6).tolist() == [1, 0, 0, 0, 0]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert frequencies(0.0).tolist() == [1, 0, 0, 0, 0]


def test_a_row_depends_on_its_own_key_and_logits_only() -> None:
    keys = jax.random.split(jax.random.key(1), 8)
    logits = jax.random.normal(jax.random.key(2), (8, 11))
    together = draw(logits, keys, temperature=1.0, top_p=0.9)
    alone = [
        draw(logits[r : r + 1], keys[r : r + 1], temperature=1.0, top_p=0.9)[0] for r in range(8)
    ]
    assert together.tolist() == [int(token) for token in alone]
