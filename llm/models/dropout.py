"""Dropout with one key per row, so that a row's mask does not depend on its neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(
    x_BTD: Float[Array, "B T D"], rate: float, keys_B: Key[Array, " B"] | None, site: int
) -> Float[Array, "B T D"]:
    """Zero a share `rate` of the entries and scale the rest by 1 / (1 - rate).

    Args:
        x_BTD: activations.
        rate: share of entries to drop, in [0, 1).
        keys_B: one random key per row; None (evaluation, generation) returns `x_BTD` as it is.
        site: number of the place in the model, so that each place draws its own mask.
    """
    if keys_B is None or rate == 0.0:
        return x_BTD
    shape = x_BTD.shape[1:]
    keep = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, site), 1 - rate, shape))
    return jnp.where(keep(keys_B), x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
