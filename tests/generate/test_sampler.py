"""Draws from a small vocabulary against exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.spec import RefusedError
from llm.generate.sampler import program_of, sample, values_of
from llm.generate.specs import Sampling

LOGITS_V = np.log([0.5, 0.25, 0.15, 0.07, 0.03]).astype(np.float32)
DRAWS = 20_000

_sample = jax.jit(sample, static_argnums=4)


def draw(logits, keys, seen=None, **settings):
    sampling = Sampling(**settings)
    return _sample(logits, keys, seen, values_of(sampling), program_of(sampling))


def frequencies(temperature: float = 1.0, logits_V=LOGITS_V, seen=None, **settings) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), DRAWS)
    logits = jnp.broadcast_to(logits_V, (DRAWS, len(logits_V)))
    seen = None if seen is None else jnp.broadcast_to(seen, logits.shape)
    tokens, _ = draw(logits, keys, seen, temperature=temperature, **settings)
    return np.bincount(np.asarray(tokens), minlength=len(logits_V)) / DRAWS


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
    assert within_noise(frequencies(top_p=top_p), exact / exact.sum())


def test_top_p_acts_on_the_tempered_distribution() -> None:
    """At temperature 0.5 the likeliest token holds 0.72, so that 0.6 keeps it alone."""
    assert frequencies(0.5, top_p=0.6).tolist() == [1, 0, 0, 0, 0]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert frequencies(0.0).tolist() == [1, 0, 0, 0, 0]


def test_a_row_depends_on_its_own_key_and_logits_only() -> None:
    keys = jax.random.split(jax.random.key(1), 8)
    logits = jax.random.normal(jax.random.key(2), (8, 11))
    together, _ = draw(logits, keys, temperature=1.0, top_p=0.9)
    alone = [
        draw(logits[r : r + 1], keys[r : r + 1], temperature=1.0, top_p=0.9)[0][0] for r in range(8)
    ]
    assert together.tolist() == [int(token) for token in alone]


@pytest.mark.parametrize(("top_k", "kept"), [(1, 1), (2, 2), (4, 4), (5, 5), (99, 5), (0, 5)])
def test_top_k_keeps_so_many(top_k: int, kept: int) -> None:
    exact = np.where(np.arange(len(LOGITS_V)) < kept, np.exp(LOGITS_V), 0)
    assert within_noise(frequencies(top_k=top_k), exact / exact.sum())


@pytest.mark.parametrize(("min_p", "kept"), [(0.0, 5), (0.05, 5), (0.2, 3), (0.45, 2), (1.0, 1)])
def test_min_p_keeps_what_is_not_much_less_likely(min_p: float, kept: int) -> None:
    exact = np.where(np.arange(len(LOGITS_V)) < kept, np.exp(LOGITS_V), 0)
    assert within_noise(frequencies(min_p=min_p), exact / exact.sum())


def test_filters_act_one_after_the_other() -> None:
    """Of the two likeliest, 0.5 and 0.25, the first holds 2/3: top_p=0.6 keeps it alone."""
    assert frequencies(top_k=2, top_p=0.6).tolist() == [1, 0, 0, 0, 0]


def test_equal_tokens_are_kept_together() -> None:
    logits = np.log(np.array([0.4, 0.2, 0.2, 0.2], np.float32))
    assert (frequencies(logits_V=logits, top_k=2) > 0).tolist() == [True] * 4


@pytest.mark.parametrize("V", [5, 128, 129, 1000])
def test_draws_from_larger_vocabularies(V: int) -> None:
    """Draws look at blocks of 128 tokens first."""
    logits = np.random.default_rng(V).normal(0, 2, V).astype(np.float32)
    logits[V // 2] = -np.inf
    exact = np.exp(logits) / np.exp(logits).sum()
    assert within_noise(frequencies(logits_V=logits), exact)


def test_thresholds_equal_those_of_sorting() -> None:
    """Bisection against numpy's sort, with negative, tiny, huge and equal logits."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (40, 300)).astype(np.float32)
    logits[::2] = np.round(logits[::2])  # ties
    logits[:, 0], logits[:, 1], logits[:, 2] = 1e-40, 0.0, -0.0
    logits[5] *= 1e4
    keys = jax.random.split(jax.random.key(0), 40)
    for k, p in [(3, 1.0), (0, 0.7), (17, 0.9)]:
        for seed in range(5):
            keys = jax.random.split(jax.random.key(seed), 40)
            tokens, _ = draw(logits, keys, top_k=k, top_p=p)
            for row, token in zip(logits.astype(np.float64), tokens.tolist(), strict=True):
                kept = row >= (np.sort(row)[-k] if k else -np.inf)
                weights = np.where(kept, np.exp(row - row.max()), 0)
                weights /= weights.sum()
                above = weights[row > row[token]].sum()  # the mass before this token
                assert kept[token] and above < p + 1e-6


def test_penalty_makes_what_was_seen_less_likely() -> None:
    logits = np.array([2.0, -1.0, 0.5], np.float32)
    exact = np.exp([2.0 / 1.5, -1.0 * 1.5, 0.5])  # the third was not seen
    seen = np.array([True, True, False])
    found = frequencies(logits_V=logits, seen=seen, repetition_penalty=1.5)
    assert within_noise(found, exact / exact.sum())


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_log_probs_are_those_of_the_model_at_this_temperature(temperature: float) -> None:
    logits = jax.random.normal(jax.random.key(0), (6, 33))
    keys = jax.random.split(jax.random.key(1), 6)
    seen = jnp.ones(logits.shape, bool)
    settings = {"top_k": 3, "repetition_penalty": 2.0}
    tokens, log_probs = draw(logits, keys, seen, temperature=temperature, **settings)
    whole = jax.nn.log_softmax(logits / (temperature or 1.0))
    np.testing.assert_allclose(log_probs, whole[jnp.arange(6), tokens], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0), ("temperature", -1.0), ("temperature", float("nan")),
        ("temperature", float("inf")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
        ("min_p", -0.1), ("min_p", float("nan")), ("repetition_penalty", 0.0),
    ],
)  # fmt: skip
def test_refused(name: str, value: float) -> None:
    with pytest.raises(RefusedError, match=f"{name}={value}: expected"):
        Sampling(**{name: value})
