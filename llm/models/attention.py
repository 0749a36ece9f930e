"""Causal attention within segments, with grouped queries, by blocks of queries.

The backward pass is written out: it needs a block's scores and their log-sum-exp, not several
arrays of that size as plain differentiation does (Dao et al. 2022). Keys after a block are skipped.
"""

from __future__ import annotations

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
    """

    segments: Int[Array, "B T"]
    positions: Int[Array, "B T"]


def visible(queries: TokenIndex, keys: TokenIndex) -> Bool[Array, "B T S"]:
    """Which key each query sees. Made inside the jitted step, never stored."""
    same_segment = queries.segments[:, :, None] == keys.segments[:, None, :]
    not_after = keys.positions[:, None, :] <= queries.positions[:, :, None]
    return same_segment & not_after


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    queries: TokenIndex,
    keys: TokenIndex,
    *,
    in_row_order: bool,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v over the visible keys, softmax in fp32.

    The queries that share a key/value head are rows of one product: nothing is repeated.

    Args:
        q_BTNH, k_BSKH, v_BSKH: queries, keys, values; K divides N.
        queries, keys: see `TokenIndex`.
        in_row_order: queries and keys are the same tokens and positions grow along the row within
            each segment, so that keys after a block of queries need not be looked at.
    """
    T = q_BTNH.shape[1]
    block = max(_SMALLEST_BLOCK, -(-T // _MOST_BLOCKS)) if in_row_order else T
    return _attention(in_row_order, block, q_BTNH, k_BSKH, v_BSKH, queries, keys)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    in_row_order: bool,
    block: int,
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    queries: TokenIndex,
    keys: TokenIndex,
) -> Array:
    return _forward(in_row_order, block, q_BTNH, k_BSKH, v_BSKH, queries, keys)[0]


def _forward(
    in_row_order: bool,
    block: int,
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    queries: TokenIndex,
    keys: TokenIndex,
) -> tuple[Array, tuple[Any, ...]]:
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    # The scale goes on the queries: T x H numbers, not T x S.
    q_BKGTH = _group(q_BTNH * H**-0.5, K)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    outs, log_sums = [], []
    for first, last, seen in _blocks(in_row_order, block, T, S):
        scores = _scores(q_BKGTH, k_BKSH, queries, keys, (first, last, seen))
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(-1, keepdims=True)
        out = _multiply(weights.astype(v_BKSH.dtype), v_BKSH[:, :, :seen])
        outs.append(out / total)  # H numbers per query to divide, not S
        log_sums.append(largest + jnp.log(total))
    out_BKGTH = jnp.concatenate(outs, axis=3)
    out_BTNH = out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)
    log_sum_BKGT1 = jnp.concatenate(log_sums, axis=3)
    return out_BTNH, (q_BTNH, k_BSKH, v_BSKH, queries, keys, out_BTNH, log_sum_BKGT1)


def _backward(
    in_row_order: bool, block: int, saved: tuple[Any, ...], d_out_BTNH: Array
) -> tuple[Array | None, ...]:
    q_BTNH, k_BSKH, v_BSKH, queries, keys, out_BTNH, log_sum_BKGT1 = saved
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    S, K = k_BSKH.shape[1:3]
    d_out_BTNH = jax.lax.optimization_barrier(d_out_BTNH)  # see llm.models.linear
    # The sum over keys of weight x d(weight), from the output alone.
    product = d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32)
    delta_BKGT1 = _group(product.sum(-1, keepdims=True), K)
    q_BKGTH, d_out_BKGTH = _group(q_BTNH * H**-0.5, K), _group(d_out_BTNH, K)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    d_q = []
    d_k_BKSH = d_v_BKSH = jnp.zeros(k_BKSH.shape, jnp.float32)
    for first, last, seen in _blocks(in_row_order, block, T, S):
        rows = slice(first, last)
        scores = _scores(q_BKGTH, k_BKSH, queries, keys, (first, last, seen))
        weights = jnp.exp(scores - log_sum_BKGT1[:, :, :, rows])
        d_weights = _multiply_transposed(d_out_BKGTH[:, :, :, rows], v_BKSH[:, :, :seen])
        d_scores = (weights * (d_weights - delta_BKGT1[:, :, :, rows])).astype(q_BTNH.dtype)
        weights = weights.astype(q_BTNH.dtype)
        # Three products read these; see llm.models.linear.
        d_scores, weights = jax.lax.optimization_barrier((d_scores, weights))
        d_q.append(_multiply(d_scores, k_BKSH[:, :, :seen]))
        d_k_BKSH = d_k_BKSH.at[:, :, :seen].add(_gather(d_scores, q_BKGTH[:, :, :, rows]))
        d_v_BKSH = d_v_BKSH.at[:, :, :seen].add(_gather(weights, d_out_BKGTH[:, :, :, rows]))
    d_q_BKGTH = jnp.concatenate(d_q, axis=3) * H**-0.5
    return (
        d_q_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape).astype(q_BTNH.dtype),
        d_k_BKSH.swapaxes(1, 2).astype(k_BSKH.dtype),
        d_v_BKSH.swapaxes(1, 2).astype(v_BSKH.dtype),
        None,
        None,
    )


_attention.defvjp(_forward, _backward)


def _blocks(in_row_order: bool, block: int, T: int, S: int) -> list[tuple[int, int, int]]:
    """First query, last query + 1 and number of keys to look at, of each block."""
    starts = range(0, T, block)
    return [(i, min(i + block, T), min(i + block, S) if in_row_order else S) for i in starts]


def _scores(
    q_BKGTH: Array,
    k_BKSH: Array,
    queries: TokenIndex,
    keys: TokenIndex,
    where: tuple[int, int, int],
) -> Array:
    """Masked fp32 scores of one block."""
    first, last, seen = where
    scores = _multiply_transposed(q_BKGTH[:, :, :, first:last], k_BKSH[:, :, :seen])
    block_queries = TokenIndex(*(x[:, first:last] for x in queries))
    mask_BTS = visible(block_queries, TokenIndex(*(x[:, :seen] for x in keys)))
    # Adding is cheaper than selecting: what is added is shared by all heads.
    return scores + jnp.where(mask_BTS, 0.0, _HIDDEN)[:, None, None]


def _group(x_BTNH: Array, K: int) -> Array:
    """[B, T, N, H] -> [B, K, G, T, H]."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _multiply(a_BKGTS: Array, b_BKSH: Array) -> Array:
    return jnp.einsum("BKGTS,BKSH->BKGTH", a_BKGTS, b_BKSH, preferred_element_type=jnp.float32)


def _multiply_transposed(a_BKGTH: Array, b_BKSH: Array) -> Array:
    return jnp.einsum("BKGTH,BKSH->BKGTS", a_BKGTH, b_BKSH, preferred_element_type=jnp.float32)


def _gather(a_BKGTS: Array, b_BKGTH: Array) -> Array:
    return jnp.einsum("BKGTS,BKGTH->BKSH", a_BKGTS, b_BKGTH, preferred_element_type=jnp.float32)
