"""Matrix product with a bias, and its gradients written out."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from llm.models.parameter import constant, normal


class Linear(nnx.Module):
    """y = x W + b with W stored [in, out]."""

    def __init__(
        self,
        key: jax.Array,
        n_in: int,
        n_out: int,
        *,
        std: float,
        axes: tuple[str, str],
        bias: bool,
    ) -> None:
        self.kernel = normal(key, (n_in, n_out), std, axes)
        self.bias = constant(0.0, (n_out,), axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*rows n_in"]) -> Float[Array, "*rows n_out"]:
        """Computes in the type of `x`."""
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)
