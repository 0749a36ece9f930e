"""Normalisations, computed in fp32 whatever the type of their input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from llm.models.parameter import constant


class LayerNorm(nnx.Module):
    """Zero mean, unit variance, then scale and bias (Ba et al. 2016)."""

    def __init__(self, width: int, eps: float) -> None:
        self.scale = constant(1.0, (width,), ("embed",))
        self.bias = constant(0.0, (width,), ("embed",))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Normalise over the last axis."""
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Unit mean square, then scale (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        self.scale = constant(1.0, (width,), ("embed",))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Normalise over the last axis."""
        x32 = x.astype(jnp.float32)
        mean_square = jnp.square(x32).mean(-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.eps) * self.scale[...]).astype(x.dtype)
