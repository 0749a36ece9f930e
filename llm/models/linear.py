"""Matrix product with a bias, and its gradient written out."""

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
        kernel = self.kernel[...].astype(x.dtype)
        y = matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


@jax.custom_vjp
def matmul(x_MD: Float[Array, "M D"], w_DF: Float[Array, "D F"]) -> Float[Array, "M F"]:
    """x W, with a gradient that XLA cannot rearrange together with what comes before it."""
    return x_MD @ w_DF


def _forward(x_MD: Array, w_DF: Array) -> tuple[Array, tuple[Array, Array]]:
    return x_MD @ w_DF, (x_MD, w_DF)


def _backward(saved: tuple[Array, Array], d_y_MF: Array) -> tuple[Array, Array]:
    x_MD, w_DF = saved
    # Without the barrier XLA moves the transposition for the second product into the derivative of
    # the activation that made d_y, and so computes that twice.
    d_y_MF = jax.lax.optimization_barrier(d_y_MF)
    return d_y_MF @ w_DF.T, x_MD.T @ d_y_MF


matmul.defvjp(_forward, _backward)
