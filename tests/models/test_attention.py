"""Attention by blocks against the plain formula, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.attention import TokenIndex, attention, attention_to_cache, visible
from llm.models.flash_attention import flash_attention


def to_cache(q, k, v, index: TokenIndex):
    """The same by the function for caches, whose keys and values lie differently."""
    return attention_to_cache(q, k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), index, index)


def plain(q, k, v, index: TokenIndex):
    """The formula as in the textbook, with keys and values repeated."""
    groups = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(visible(index, index)[:, None], scores, -1e30)
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores, axis=-1), v)


def packed(B: int, T: int, seed: int = 0) -> TokenIndex:
    """Several documents per row, of random lengths, then padding."""
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, 6, (B, T)), axis=1)
    segments[:, T - rng.integers(0, T // 3) :] = 0
    first = np.stack(
        [np.searchsorted(np.where(r == 0, 9, r), np.where(r == 0, 9, r)) for r in segments]
    )
    return TokenIndex(
        jnp.asarray(segments, jnp.int32), jnp.asarray(np.arange(T) - first, jnp.int32)
    )


def trees(B: int, T: int) -> TokenIndex:
    """The same documents; after a third, each goes on in several ways, which do so again."""
    index = packed(B, T)
    rng = np.random.default_rng(1)
    positions = np.asarray(index.positions).copy()
    ends = np.full((B, T), T, np.int32)

    def split(row: int, where: np.ndarray, position: int, depth: int) -> None:
        """A beginning, and what goes on from it."""
        beginning, rest = np.split(where, [len(where) // 3])
        positions[row, beginning] = position + np.arange(len(beginning))
        ends[row, beginning] = where[-1] + 1
        for branch in np.split(rest, np.sort(rng.integers(1, len(rest) + 1, 3))):
            if depth and len(branch) > 6:
                split(row, branch, position + len(beginning), depth - 1)
            elif len(branch):
                positions[row, branch] = position + len(beginning) + np.arange(len(branch))
                ends[row, branch] = branch[-1] + 1

    for row, segments in enumerate(np.asarray(index.segments)):
        for document in range(1, 6):
            (where,) = np.nonzero(segments == document)
            if len(where):
                split(row, where, 0, 2)
    return index._replace(positions=jnp.asarray(positions), ends=jnp.asarray(ends))


def test_trees_are_what_they_say() -> None:
    """Each token sees the tokens that lead to it, one at each position."""
    index = trees(2, 300)
    seen = np.asarray(visible(index, index))
    nested = 0
    for row in range(2):
        positions, segments = np.asarray(index.positions[row]), np.asarray(index.segments[row])
        for place in np.flatnonzero(segments):
            (way,) = np.nonzero(seen[row, place])
            assert positions[way].tolist() == list(range(positions[place] + 1))
            nested += bool((np.diff(way) > 1).any())
    assert nested > 50  # tokens whose way leads past others


@pytest.mark.parametrize("make", [packed, trees])
@pytest.mark.parametrize(
    ("attend", "N", "K", "T"),
    [
        (attention, 4, 4, 5),
        (attention, 6, 2, 300),
        (attention, 3, 1, 128),
        (attention, 4, 4, 129),
        (to_cache, 6, 2, 300),
        (flash_attention, 4, 4, 5),
        (flash_attention, 6, 2, 300),
        (flash_attention, 3, 1, 128),
        (flash_attention, 4, 4, 129),
    ],
)
def test_packed_rows(attend, N: int, K: int, T: int, make) -> None:
    B, H = 2, 8
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (B, T, N, H))
    k, v = (jax.random.normal(key, (B, T, K, H)) for key in keys[1:3])
    weight = jax.random.normal(keys[3], (B, T, N, H))
    index = make(B, T)

    def ours(q, k, v):
        return jnp.vdot(attend(q, k, v, index), weight)

    def theirs(q, k, v):
        return jnp.vdot(plain(q, k, v, index), weight)

    got = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(q, k, v)
    want = jax.jit(jax.value_and_grad(theirs, (0, 1, 2)))(q, k, v)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5, rtol=2e-5)


def test_long_rows_need_less_memory_than_the_formula() -> None:
    T = 2048
    q = jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)
    index = TokenIndex(*[jax.ShapeDtypeStruct((1, T), jnp.int32)] * 2)

    def temporaries(function) -> int:
        gradient = jax.grad(lambda q, index: function(q, q, q, index).sum())
        return jax.jit(gradient).lower(q, index).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(attention) < 0.7 * temporaries(plain)


def test_queries_that_see_nothing_give_numbers() -> None:
    q = jnp.ones((1, 3, 2, 4))
    queries = TokenIndex(jnp.full((1, 3), 7, jnp.int32), jnp.zeros((1, 3), jnp.int32))
    keys = TokenIndex(jnp.ones((1, 3), jnp.int32), jnp.zeros((1, 3), jnp.int32))
    k, v = q.transpose(0, 2, 3, 1), q.swapaxes(1, 2)
    assert np.isfinite(attention_to_cache(q, k, v, queries, keys)).all()


def test_huge_scores_stay_finite() -> None:
    q = 1e4 * jax.random.normal(jax.random.key(0), (1, 9, 2, 4))
    index = packed(1, 9)
    grads = jax.grad(lambda q: attention(q, q, q, index).sum())(q)
    assert np.isfinite(grads).all()
