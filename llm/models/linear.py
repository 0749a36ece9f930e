"""Matrix product with a bias and a low-rank adapter, and its gradient written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from llm.models.dropout import dropout
from llm.models.parameter import constant, normal, uniform
from llm.models.specs import LoRASpec

_FEW_ROWS = 256  # of texts that are written; a batch to train on has more


class Linear(nnx.Module):
    """y = x W + b with W stored [in, out]; with an adapter, y = x W + b + scale (x A) B."""

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
        self.axes = axes
        self.adapter: Adapter | None = None

    def adapt(self, key: jax.Array, lora: LoRASpec, site: int) -> None:
        """Put a low-rank adapter beside the matrix, see `llm.models.lora`.

        A is drawn as PEFT draws it, evenly from +-1 / sqrt(in); B is zero.

        Args:
            key: JAX random key for A.
            lora: rank, scale and dropout.
            site: number of the place in the model, for dropout.
        """
        n_in, n_out = self.kernel.shape
        self.lora_a = uniform(key, (n_in, lora.rank), n_in**-0.5, (self.axes[0], "rank"))
        self.lora_b = constant(0.0, (lora.rank, n_out), ("rank", self.axes[1]))
        self.adapter = Adapter(lora.scale, lora.dropout, site)

    def __call__(
        self, x: Float[Array, "*rows n_in"], dropout_keys_B: Key[Array, " B"] | None = None
    ) -> Float[Array, "*rows n_out"]:
        """Computes in the type of `x`; the keys, one per row, drop entries of what A sees."""
        y = _times(x, self.kernel)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.adapter is None:
            return y
        x = dropout(x, self.adapter.dropout, dropout_keys_B, self.adapter.site)
        # Scaled where it is narrow: that is cheaper, and so is the gradient.
        return y + _times(self.adapter.scale * _times(x, self.lora_a), self.lora_b)


@dataclass(frozen=True)
class Adapter:
    """What is fixed about an adapter."""

    scale: float
    dropout: float
    site: int


def _times(x: Float[Array, "*rows n_in"], parameter: Any) -> Float[Array, "*rows n_out"]:
    """x W over the last axis, in the type of `x`."""
    w = parameter[...].astype(x.dtype)
    return matmul(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[1])


@jax.custom_vjp
def matmul(x_MD: Float[Array, "M D"], w_DF: Float[Array, "D F"]) -> Float[Array, "M F"]:
    """x W, with a gradient that XLA cannot rearrange together with what comes before it."""
    return _product(x_MD, w_DF)


def _product(x_MD: Array, w_DF: Array) -> Array:
    """x W in the type of both.

    XLA on CPUs has bf16 products with fp32 results only. For others it makes both sides fp32 first:
    all weights, when tokens are written.
    """

    def rounded(x_MD: Array, w_DF: Array) -> Array:
        def exact(x_MD: Array) -> Array:
            return jnp.matmul(x_MD, w_DF, preferred_element_type=jnp.float32)

        return never_one_row(exact, x_MD).astype(x_MD.dtype)

    if x_MD.dtype == jnp.bfloat16 and len(x_MD) <= _FEW_ROWS:
        return jax.lax.platform_dependent(x_MD, w_DF, cpu=rounded, default=jnp.matmul)
    return x_MD @ w_DF  # rematerialisation knows this one


def never_one_row(
    product: Callable[[Float[Array, "M D"]], Float[Array, "M F"]], x_MD: Float[Array, "M D"]
) -> Float[Array, "M F"]:
    """`product(x_MD)` in fp32; a bf16 row that is alone on a CPU gets an empty one beside it.

    Two rows go through weights in bf16. For one XLA makes all of them fp32 first, as above.
    """

    def beside_another(x_1D: Array) -> Array:
        return product(jnp.pad(x_1D, ((0, 1), (0, 0))))[:1]

    if len(x_MD) > 1 or x_MD.dtype != jnp.bfloat16:
        return product(x_MD)
    return jax.lax.platform_dependent(x_MD, cpu=beside_another, default=product)


def _forward(x_MD: Array, w_DF: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x_MD, w_DF), (x_MD, w_DF)


def _backward(saved: tuple[Array, Array], d_y_MF: Array) -> tuple[Array, Array]:
    x_MD, w_DF = saved
    # Without the barrier XLA moves the transposition for the second product into the derivative of
    # the activation that made d_y, and so computes that twice.
    d_y_MF = jax.lax.optimization_barrier(d_y_MF)
    return d_y_MF @ w_DF.T, x_MD.T @ d_y_MF


matmul.defvjp(_forward, _backward)
