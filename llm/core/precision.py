"""Which numbers are kept in fp32 and which are computed in bf16."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def cast_matrices(params: Any, dtype: str) -> Any:
    """Weights in the compute type; vectors (norm scales, biases) stay as they are.

    Gradients flow back through the cast into the type in which the weights are kept.
    """
    return jax.tree.map(lambda p: p.astype(jnp.dtype(dtype)) if p.ndim >= 2 else p, params)
