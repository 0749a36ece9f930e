"""Causal attention within segments, with grouped queries.

Whole rows go by blocks of queries, and their backward pass is written out: it needs a block's
scores and their log-sum-exp, not several arrays of that size as plain differentiation does (Dao et
al. 2022). Keys after a block are skipped.

B batch, T queries, S keys, N query heads, K key/value heads, G = N / K, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_SMALLEST_BLOCK = 128
_MOST_BLOCKS = 8  # blocks are unrolled: more of them skip more, but compile longer
_HIDDEN = -1e30  # finite, so that a query that sees nothing gets numbers and not NaN


class TokenIndex(NamedTuple):
    """Where tokens stand: the document they belong to and their place in it.

    A query sees a key if both are of one segment and the key's position is not after its own.
    Segment 0 is padding. This is all there is to masking: packed rows have several segments,
    padded rows one, a cache marks its filled slots as segment 1.

    Or `ends` says it all: rows may hold trees of texts that begin alike, in depth-first order. What
    goes on from a token follows it, up to the place where it ends, and nothing else sees it. See
    `llm.data.prefix_tree`.
    """

    segments: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    ends: Int[Array, "B T"] | None = None
    """For each token, the place in the row after the last that goes on from it, and so sees it.
    None: all that follows in its segment does."""


Attention = Callable[[Array, Array, Array, TokenIndex], Array]
"""What computes the attention of whole rows: `attention`, or another of `llm.models.kernels`."""


def visible(queries: TokenIndex, keys: TokenIndex, first: int = 0) -> Bool[Array, "B T S"]:
    """Which key each query sees. Made inside the jitted step, never stored.

    Args:
        queries, keys: of one row; whole rows if texts begin alike in them.
        first: place of the first query in its row; keys are those from its beginning on.
    """
    if keys.ends is not None:
        place_T1 = first + jnp.arange(queries.segments.shape[1])[:, None]
        place_S = jnp.arange(keys.segments.shape[1])
        return (place_S <= place_T1) & (place_T1 < keys.ends[:, None, :])
    same_segment = queries.segments[:, :, None] == keys.segments[:, None, :]
    not_after = keys.positions[:, None, :] <= queries.positions[:, :, None]
    return same_segment & not_after


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    index: TokenIndex,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v over the visible keys of whole rows, softmax in fp32.

    The queries that share a key/value head are rows of one product: nothing is repeated.

    Args:
        q_BTNH, k_BTKH, v_BTKH: queries, keys, values; K divides N.
        index: see `TokenIndex`. What a query sees must not come after it in the row, since keys
            after a block of queries are not looked at.
    """
    return _attention(block_of(q_BTNH.shape[1]), q_BTNH, k_BTKH, v_BTKH, index)


def block_of(T: int) -> int:
    """Queries of a block, in a row of T."""
    return max(_SMALLEST_BLOCK, -(-T // _MOST_BLOCKS))


def attention_to_cache(
    q_BTNH: Float[Array, "B T N H"],
    k_BKHS: Float[Array, "B K H S"],
    v_BKSH: Float[Array, "B K S H"],
    queries: TokenIndex,
    keys: TokenIndex,
) -> Float[Array, "B T N H"]:
    """The same for new tokens and a cache that holds them and what came before.

    Computes in the type of the cache: to convert one token's query is cheap, the cache is not.

    Args:
        q_BTNH: queries of the new tokens.
        k_BKHS, v_BKSH: the cache, in the order in which the products read it.
        queries, keys: see `TokenIndex`.
    """
    q_BTNH, dtype = q_BTNH.astype(k_BKHS.dtype), q_BTNH.dtype
    q_BKGTH = _group(q_BTNH * q_BTNH.shape[3] ** -0.5, k_BKHS.shape[1])
    scores = _multiply(q_BKGTH, k_BKHS) + _hidden(queries, keys)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    out_BKGTH = _multiply(weights.astype(v_BKSH.dtype), v_BKSH) / weights.sum(-1, keepdims=True)
    return _ungroup(out_BKGTH).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(block: int, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, index: TokenIndex) -> Array:
    return _forward(block, q_BTNH, k_BTKH, v_BTKH, index)[0]


def _forward(
    block: int, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, index: TokenIndex
) -> tuple[Array, tuple[Any, ...]]:
    T, H, K = q_BTNH.shape[1], q_BTNH.shape[3], k_BTKH.shape[2]
    # The scale goes on the queries: T x H numbers, not T x S.
    q_BKGTH = _group(q_BTNH * H**-0.5, K)
    k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    outs, log_sums = [], []
    for first, last in _blocks(block, T):
        scores = _scores(q_BKGTH, k_BKTH, index, first, last)
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(-1, keepdims=True)
        out = _multiply(weights.astype(v_BKTH.dtype), v_BKTH[:, :, :last])
        outs.append(out / total)  # H numbers per query to divide, not S
        log_sums.append(largest + jnp.log(total))
    out_BTNH = _ungroup(jnp.concatenate(outs, axis=3)).astype(q_BTNH.dtype)
    log_sum_BKGT1 = jnp.concatenate(log_sums, axis=3)
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, index, out_BTNH, log_sum_BKGT1)


def _backward(block: int, saved: tuple[Any, ...], d_out_BTNH: Array) -> tuple[Array | None, ...]:
    q_BTNH, k_BTKH, v_BTKH, index, out_BTNH, log_sum_BKGT1 = saved
    T, H, K = q_BTNH.shape[1], q_BTNH.shape[3], k_BTKH.shape[2]
    d_out_BTNH = jax.lax.optimization_barrier(d_out_BTNH)  # see llm.models.linear
    # The sum over keys of weight x d(weight), from the output alone.
    product = d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32)
    delta_BKGT1 = _group(product.sum(-1, keepdims=True), K)
    q_BKGTH, d_out_BKGTH = _group(q_BTNH * H**-0.5, K), _group(d_out_BTNH, K)
    k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    d_q = []
    d_k_BKTH = d_v_BKTH = jnp.zeros(k_BKTH.shape, jnp.float32)
    for first, last in _blocks(block, T):
        rows = slice(first, last)
        scores = _scores(q_BKGTH, k_BKTH, index, first, last)
        weights = jnp.exp(scores - log_sum_BKGT1[:, :, :, rows])
        d_weights = _multiply_transposed(d_out_BKGTH[:, :, :, rows], v_BKTH[:, :, :last])
        d_scores = (weights * (d_weights - delta_BKGT1[:, :, :, rows])).astype(q_BTNH.dtype)
        weights = weights.astype(q_BTNH.dtype)
        # Three products read these; see llm.models.linear.
        d_scores, weights = jax.lax.optimization_barrier((d_scores, weights))
        d_q.append(_multiply(d_scores, k_BKTH[:, :, :last]))
        d_k_BKTH = d_k_BKTH.at[:, :, :last].add(_gather(d_scores, q_BKGTH[:, :, :, rows]))
        d_v_BKTH = d_v_BKTH.at[:, :, :last].add(_gather(weights, d_out_BKGTH[:, :, :, rows]))
    d_q_BKGTH = jnp.concatenate(d_q, axis=3) * H**-0.5
    return (
        _ungroup(d_q_BKGTH).astype(q_BTNH.dtype),
        d_k_BKTH.swapaxes(1, 2).astype(k_BTKH.dtype),
        d_v_BKTH.swapaxes(1, 2).astype(v_BTKH.dtype),
        None,
    )


_attention.defvjp(_forward, _backward)


def _blocks(block: int, T: int) -> list[tuple[int, int]]:
    """First query and last query + 1 of each block; the latter is also how many keys it sees."""
    return [(i, min(i + block, T)) for i in range(0, T, block)]


def _scores(q_BKGTH: Array, k_BKTH: Array, index: TokenIndex, first: int, last: int) -> Array:
    """Masked fp32 scores of one block of queries."""
    scores = _multiply_transposed(q_BKGTH[:, :, :, first:last], k_BKTH[:, :, :last])
    block, seen = (jax.tree.map(lambda x, a=a: x[:, a:last], index) for a in (first, 0))
    return scores + _hidden(block, seen, first)


def _hidden(queries: TokenIndex, keys: TokenIndex, first: int = 0) -> Array:
    """[B, 1, 1, T, S] to add to scores: cheaper than selecting, and shared by all heads."""
    return jnp.where(visible(queries, keys, first), 0.0, _HIDDEN)[:, None, None]


def _group(x_BTNH: Array, K: int) -> Array:
    """[B, T, N, H] -> [B, K, G, T, H]."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _ungroup(x_BKGTH: Array) -> Array:
    """[B, K, G, T, H] -> [B, T, N, H]."""
    B, K, G, T, H = x_BKGTH.shape
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def _multiply(a_BKGTS: Array, b_BKSH: Array) -> Array:
    return jnp.einsum("BKGTS,BKSH->BKGTH", a_BKGTS, b_BKSH, preferred_element_type=jnp.float32)


def _multiply_transposed(a_BKGTH: Array, b_BKSH: Array) -> Array:
    return jnp.einsum("BKGTH,BKSH->BKGTS", a_BKGTH, b_BKSH, preferred_element_type=jnp.float32)


def _gather(a_BKGTS: Array, b_BKGTH: Array) -> Array:
    return jnp.einsum("BKGTS,BKGTH->BKSH", a_BKGTS, b_BKGTH, preferred_element_type=jnp.float32)
