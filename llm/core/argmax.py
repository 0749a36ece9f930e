"""The likeliest token."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def argmax(scores: Float[Array, "*rows V"]) -> Int[Array, " *rows"]:
    """Place of the largest score, the first of several, int32; V - 1 where all are NaN.

    In two reductions that XLA vectorises on CPUs. `jnp.argmax` is one that it does not, and over a
    vocabulary takes ten times as long: a quarter of what a model of 135M parameters takes.
    """
    V = scores.shape[-1]
    is_largest = scores == scores.max(-1, keepdims=True)
    return jnp.where(is_largest, jnp.arange(V, dtype=jnp.int32), V - 1).min(-1)
