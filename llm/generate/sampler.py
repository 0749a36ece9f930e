"""From logits to tokens: temperature and nucleus sampling with a key per row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sample_token(
    logits_BV: Float[Array, "B V"],
    keys_B: Key[Array, " B"],
    *,
    temperature: float,
    top_p: float = 1.0,
) -> Int[Array, " B"]:
    """Draw one token per row.

    Args:
        logits_BV: scores over the vocabulary.
        keys_B: one key per row, so that a row's tokens do not depend on its neighbours.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that together hold this probability (Holtzman et
            al. 2020). The likeliest token always stays.
    """
    if temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if top_p < 1.0:
        descending_BV = -jnp.sort(-logits_BV, axis=-1)
        probabilities_BV = jax.nn.softmax(descending_BV, axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        # The smallest logit that is still in: the last one with less than top_p before it.
        kept_BV = jnp.where(before_BV < top_p, descending_BV, jnp.inf)
        logits_BV = jnp.where(logits_BV >= kept_BV.min(-1, keepdims=True), logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
