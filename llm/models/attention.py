"""Causal attention within segments, with grouped queries."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v over the visible keys, softmax in fp32.

    Queries are grouped by the key/value head they share, so keys and values are not repeated.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    mask_BTS = visible(queries, keys)
    scores_BKGTS = jnp.where(
        mask_BTS[:, None, None], scores_BKGTS * H**-0.5, jnp.finfo(jnp.float32).min
    )
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)
    return out_BTKGH.reshape(B, T, N, H)
