"""Causal attention within segments as kernels for NVIDIA GPUs, in Pallas.

The scores of a block of queries and a block of keys live in registers only (Dao 2023,
FlashAttention-2). Blocks of keys that lie wholly in other documents, or in another branch of a
tree, are not computed, so that a row of many short documents costs what the documents cost, and
queries that share a key/value head read it once per block of the backward pass: nothing is
repeated. Heads may be up to 256 wide on Hopper, and up to 128 on Ampere, whose shared memory is
smaller.

Each key has an end: queries from its own place on see it, up to there. Documents and trees of texts
that begin alike are the same to the kernels.

B batch, T tokens, N query heads, K key/value heads, G = N / K, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from llm.models.attention import TokenIndex

_BLOCK = 64  # queries and keys that meet at a time
_HIDDEN = -1e30
_LOG2_E = 1.4426950408889634  # the kernels work with powers of 2: the GPU has an instruction


def flash_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    index: TokenIndex,
) -> Float[Array, "B T N H"]:
    """The same as `llm.models.attention.attention`, for documents that lie one after another.

    Args:
        q_BTNH, k_BTKH, v_BTKH: queries, keys, values; K divides N.
        index: see `TokenIndex`. The tokens of a document must be neighbours, as in packed rows,
            in the order that `ends` asks for.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    more, wider = -T % _BLOCK, _power_of_two(H) - H

    def padded(x_BTNH: Array) -> Array:
        return jnp.pad(x_BTNH, ((0, 0), (0, more), (0, 0), (0, wider)))

    ends_BT = _ends_of_segments(index.segments) if index.ends is None else index.ends
    ends_BT = jnp.pad(ends_BT, ((0, 0), (0, more)), constant_values=T + more)
    q, k, v = padded(q_BTNH * H**-0.5), padded(k_BTKH), padded(v_BTKH)
    return _flash(q, k, v, ends_BT)[:, :T, :, :H]


def _power_of_two(n: int) -> int:
    """The next one, and not less than 16: what the GPU multiplies at a time."""
    return max(16, 1 << (n - 1).bit_length())


@jax.custom_vjp
def _flash(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, ends_BT: Array) -> Array:
    return _flash_forward(q_BTNH, k_BTKH, v_BTKH, ends_BT)[0]


def _flash_forward(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, ends_BT: Array
) -> tuple[Array, tuple[Array, ...]]:
    B, T, N, H = q_BTNH.shape
    out_BTNH, log_sum_BNT = _call(
        _forward_kernel,
        (T // _BLOCK, N, B),
        _by_queries(q_BTNH, k_BTKH, v_BTKH, ends_BT),
        [
            (q_BTNH, (None, _BLOCK, None, H), lambda i, n, b: (b, i, n, 0)),
            (jax.ShapeDtypeStruct((B, N, T), jnp.float32), (None, None, _BLOCK),
             lambda i, n, b: (b, n, i)),
        ],
    )  # fmt: skip
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, ends_BT, out_BTNH, log_sum_BNT)


def _flash_backward(saved: tuple[Array, ...], d_out_BTNH: Array) -> tuple[Array | None, ...]:
    q_BTNH, k_BTKH, v_BTKH, ends_BT, out_BTNH, log_sum_BNT = saved
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    G = N // K
    _, last = _reach(ends_BT)
    # The sum over keys of weight x d(weight), from the output alone.
    product = d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32)
    delta_BNT = product.sum(-1).swapaxes(1, 2)
    (d_q_BTNH,) = _call(
        _queries_kernel,
        (T // _BLOCK, N, B),
        [
            *_by_queries(q_BTNH, k_BTKH, v_BTKH, ends_BT),
            (d_out_BTNH, (None, _BLOCK, None, H), lambda i, n, b: (b, i, n, 0)),
            (log_sum_BNT, (None, None, _BLOCK), lambda i, n, b: (b, n, i)),
            (delta_BNT, (None, None, _BLOCK), lambda i, n, b: (b, n, i)),
        ],
        [(q_BTNH, (None, _BLOCK, None, H), lambda i, n, b: (b, i, n, 0))],
    )
    d_k_BTKH, d_v_BTKH = _call(
        _keys_kernel,
        (T // _BLOCK, K, B),
        [
            (last, (None, None), lambda j, k, b: (b, j)),
            (ends_BT, (None, T), lambda j, k, b: (b, 0)),
            (q_BTNH, (None, T, G, H), lambda j, k, b: (b, 0, k, 0)),
            (k_BTKH, (None, _BLOCK, None, H), lambda j, k, b: (b, j, k, 0)),
            (v_BTKH, (None, _BLOCK, None, H), lambda j, k, b: (b, j, k, 0)),
            (d_out_BTNH, (None, T, G, H), lambda j, k, b: (b, 0, k, 0)),
            (log_sum_BNT, (None, G, T), lambda j, k, b: (b, k, 0)),
            (delta_BNT, (None, G, T), lambda j, k, b: (b, k, 0)),
        ],
        [
            (k_BTKH, (None, _BLOCK, None, H), lambda j, k, b: (b, j, k, 0)),
            (v_BTKH, (None, _BLOCK, None, H), lambda j, k, b: (b, j, k, 0)),
        ],
    )
    return d_q_BTNH, d_k_BTKH, d_v_BTKH, None


_flash.defvjp(_flash_forward, _flash_backward)


def _ends_of_segments(segments_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The place after the last token of each one's document."""
    T = segments_BT.shape[1]
    after = jnp.arange(1, T + 1, dtype=jnp.int32)
    is_last = (segments_BT != jnp.roll(segments_BT, -1, axis=1)) | (after == T)
    return jax.lax.cummin(jnp.where(is_last, after, T), axis=1, reverse=True)


def _reach(ends_BT: Int[Array, "B T"]) -> tuple[Int[Array, "B I"], Int[Array, "B I"]]:
    """For each of I blocks: the first of keys its queries see, the last of queries that see it."""
    B, T = ends_BT.shape
    places = jnp.arange(T, dtype=jnp.int32)
    # Where nothing before goes on, a document begins, or a tree.
    begins_BT = jnp.pad(jax.lax.cummax(ends_BT, axis=1), ((0, 0), (1, 0)))[:, :-1] <= places
    starts_BT = jax.lax.cummax(jnp.where(begins_BT, places, 0), axis=1)
    last_BI = ends_BT.reshape(B, -1, _BLOCK).max(2) - 1
    return starts_BT[:, ::_BLOCK] // _BLOCK, last_BI // _BLOCK


def _by_queries(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, ends_BT: Array) -> list[Any]:
    """What a kernel reads that goes by blocks of queries, over the grid [T / block, N, B]."""
    T, N, H = q_BTNH.shape[1:]
    G = N // k_BTKH.shape[2]
    first, last = _reach(ends_BT)
    return [
        (first, (None, None), lambda i, n, b: (b, i)),
        (last, (None, T // _BLOCK), lambda i, n, b: (b, 0)),
        (ends_BT, (None, T), lambda i, n, b: (b, 0)),
        (q_BTNH, (None, _BLOCK, None, H), lambda i, n, b: (b, i, n, 0)),
        (k_BTKH, (None, T, None, H), lambda i, n, b: (b, 0, n // G, 0)),
        (v_BTKH, (None, T, None, H), lambda i, n, b: (b, 0, n // G, 0)),
    ]


def _call(kernel: Any, grid: tuple[int, ...], inputs: list[Any], outputs: list[Any]) -> Any:
    """`pallas_call` with each array beside its block and the place of the block in the grid."""

    def run(*arrays: Array, interpret: bool) -> Any:
        return pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=[pl.BlockSpec(block, at) for _, block, at in inputs],
            out_specs=[pl.BlockSpec(block, at) for _, block, at in outputs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _, _ in outputs],
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            interpret=interpret,
            name=kernel.__name__.strip("_"),
        )(*arrays)

    # A CPU goes through the kernel operation by operation: for tests, not for use.
    return jax.lax.platform_dependent(
        *[x for x, _, _ in inputs],
        cpu=partial(run, interpret=True),
        default=partial(run, interpret=False),
    )


def _forward_kernel(
    first: Any, last: Any, ends: Any, q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any,
    log_sum_ref: Any,
) -> None:  # fmt: skip
    i = pl.program_id(0)
    q = q_ref[...]

    def visit(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, largest, total = carry
        keys = pl.ds(j * _BLOCK, _BLOCK)
        scores = _scores(q, k_ref[keys, :], ends, i, j)
        new_largest = jnp.maximum(largest, scores.max(1))
        weights = jnp.exp2(scores - new_largest[:, None])
        shrink = jnp.exp2(largest - new_largest)
        value = triton.dot(weights.astype(q.dtype), v_ref[keys, :])
        return out * shrink[:, None] + value, new_largest, total * shrink + weights.sum(1)

    zeros = jnp.zeros(_BLOCK, jnp.float32)
    carry = jnp.zeros(q.shape, jnp.float32), zeros + _HIDDEN, zeros
    out, largest, total = _visit_keys(first, last, i, visit, carry)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    log_sum_ref[...] = largest + jnp.log2(total)


def _queries_kernel(
    first: Any, last: Any, ends: Any, q_ref: Any, k_ref: Any, v_ref: Any, d_out_ref: Any,
    log_sum_ref: Any, delta_ref: Any, d_q_ref: Any,
) -> None:  # fmt: skip
    i = pl.program_id(0)
    q, d_out, log_sum, delta = q_ref[...], d_out_ref[...], log_sum_ref[...], delta_ref[...]

    def visit(j: Array, d_q: Array) -> Array:
        keys = pl.ds(j * _BLOCK, _BLOCK)
        k = k_ref[keys, :]
        weights = jnp.exp2(_scores(q, k, ends, i, j) - log_sum[:, None])
        d_weights = triton.dot(d_out, v_ref[keys, :], trans_b=True)
        d_scores = weights * (d_weights - delta[:, None])
        return d_q + triton.dot(d_scores.astype(k.dtype), k)

    d_q = _visit_keys(first, last, i, visit, jnp.zeros(q.shape, jnp.float32))
    d_q_ref[...] = d_q.astype(d_q_ref.dtype)


def _visit_keys(
    first: Any, last: Any, i: Array, visit: Callable[[Array, Any], Any], carry: Any
) -> Any:
    """Of the blocks of keys up to i, those which a query of block i may see."""

    def look(j: Array, carry: Any) -> Any:
        return jax.lax.cond(last[j] >= i, partial(visit, j), lambda carry: carry, carry)

    return jax.lax.fori_loop(first[...], i + 1, look, carry)


def _keys_kernel(
    last: Any, ends: Any, q_ref: Any, k_ref: Any, v_ref: Any, d_out_ref: Any,
    log_sum_ref: Any, delta_ref: Any, d_k_ref: Any, d_v_ref: Any,
) -> None:  # fmt: skip
    j = pl.program_id(0)
    k, v = k_ref[...], v_ref[...]

    def visit(i: Array, carry: tuple[Array, Array], g: int) -> tuple[Array, Array]:
        d_k, d_v = carry
        queries = pl.ds(i * _BLOCK, _BLOCK)
        q, d_out = q_ref[queries, g, :], d_out_ref[queries, g, :]
        scores = _scores(q, k, ends, i, j)
        weights = jnp.exp2(scores - log_sum_ref[g, queries][:, None])
        d_weights = triton.dot(d_out, v, trans_b=True)
        d_scores = weights * (d_weights - delta_ref[g, queries][:, None])
        d_k += triton.dot(d_scores.astype(q.dtype), q, trans_a=True)
        return d_k, d_v + triton.dot(weights.astype(q.dtype), d_out, trans_a=True)

    carry = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for g in range(q_ref.shape[1]):
        carry = jax.lax.fori_loop(j, last[...] + 1, partial(visit, g=g), carry)
    d_k_ref[...], d_v_ref[...] = (x.astype(d_k_ref.dtype) for x in carry)


def _scores(q: Array, k: Array, ends: Any, i: Array, j: Array) -> Array:
    """Scores, as powers of 2, of block i of the queries against block j of the keys."""
    queries, keys = (n * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32) for n in (i, j))
    seen = (queries[:, None] >= keys) & (queries[:, None] < ends[pl.ds(j * _BLOCK, _BLOCK)])
    return jnp.where(seen, triton.dot(q, k, trans_b=True) * _LOG2_E, _HIDDEN)
