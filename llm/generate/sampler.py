"""From logits to tokens: which tokens may be drawn, and drawing one with a key per row.

B rows, V vocabulary, W rows of scores: where rows say the same, W is less than B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from llm.core.argmax import argmax
from llm.generate.specs import Sampling

_BLOCK = 128  # tokens; draws look at sums of blocks first


class Program(NamedTuple):
    """Which steps a compiled sampler has."""

    greedy: bool
    penalised: bool
    top_k: bool
    top_p: bool
    min_p: bool


class Values(NamedTuple):
    """Settings as arrays."""

    temperature: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]


def program_of(sampling: Sampling) -> Program:
    """What has to be compiled for these settings."""
    greedy = sampling.temperature == 0
    return Program(
        greedy=greedy,
        penalised=sampling.repetition_penalty != 1,
        top_k=not greedy and sampling.top_k > 0,
        top_p=not greedy and sampling.top_p < 1,
        min_p=not greedy and sampling.min_p > 0,
    )


def values_of(sampling: Sampling) -> Values:
    """The numbers, which may change without a new program."""
    return Values(
        temperature=jnp.float32(sampling.temperature or 1.0),
        repetition_penalty=jnp.float32(sampling.repetition_penalty),
        top_k=jnp.int32(sampling.top_k),
        top_p=jnp.float32(sampling.top_p),
        min_p=jnp.float32(sampling.min_p),
    )


def sample(
    logits_WV: Float[Array, "W V"],
    keys_B: Key[Array, " B"],
    seen_WV: Bool[Array, "W V"] | None,
    values: Values,
    program: Program,
    of_B: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draw one token per key.

    Args:
        logits_WV: fp32 scores over the vocabulary.
        keys_B: one key per row of a batch, so that its tokens do not depend on its neighbours.
        seen_WV: tokens that the penalty is for; not looked at without one.
        values, program: see `llm.generate.specs.Sampling`.
        of_B: which of the W each key draws from; its own if left out, of as many.

    Returns:
        Tokens, and their log-probability under the model at this temperature (at 1 for greedy
        decoding): before penalty and filters, which is what a policy gradient needs.
    """
    scaled_WV = logits_WV / values.temperature
    allowed_WV = scaled_WV
    if program.penalised and seen_WV is not None:
        strength = values.repetition_penalty
        penalty = jnp.where(allowed_WV > 0, 1 / strength, strength)
        allowed_WV = jnp.where(seen_WV, allowed_WV * penalty, allowed_WV)
    log_z_W = jax.nn.logsumexp(scaled_WV, axis=-1)
    if program.greedy:
        token_W = argmax(allowed_WV)
        token_B = token_W if of_B is None else token_W[of_B]
    else:
        token_B = _draw(_filter(allowed_WV, values, program), keys_B, of_B)
    if of_B is None:  # where rows lie on several devices, each looks up its own
        score_B = jnp.take_along_axis(scaled_WV, token_B[:, None], axis=1)[:, 0]
        return token_B, score_B - log_z_W
    return token_B, scaled_WV[of_B, token_B] - log_z_W[of_B]


def _filter(logits_BV: Array, values: Values, program: Program) -> Array:
    """-inf for tokens that may not be drawn."""
    if program.top_k:

        def enough(kept_BV: Array) -> Array:
            return kept_BV.sum(-1) >= jnp.minimum(values.top_k, kept_BV.shape[-1])

        logits_BV = _keep_likeliest(logits_BV, enough)
    if program.top_p:
        p_BV = jax.nn.softmax(logits_BV, axis=-1)
        # Rounding may leave the sum of all a little below a top_p that is close to 1.
        wanted_B = jnp.minimum(values.top_p, p_BV.sum(-1))
        logits_BV = _keep_likeliest(
            logits_BV, lambda kept_BV: jnp.where(kept_BV, p_BV, 0).sum(-1) >= wanted_B
        )
    if program.min_p:
        least_B1 = logits_BV.max(-1, keepdims=True) + jnp.log(values.min_p)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return logits_BV


def _keep_likeliest(logits_BV: Array, enough: Callable[[Array], Array]) -> Array:
    """Keep the fewest of the likeliest tokens that are enough, ties included.

    By bisection over the 2^32 thresholds that there are: exact, and on a CPU far faster than
    sorting the vocabulary.
    """
    bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.int32)
    # Floats in their order as integers: the negative ones count backwards.
    order_BV = jnp.where(bits_BV < 0, bits_BV ^ jnp.int32(0x7FFFFFFF), bits_BV)
    rank_BV = jax.lax.bitcast_convert_type(order_BV, jnp.uint32) ^ jnp.uint32(1 << 31)

    def step(i: Array, threshold_B: Array) -> Array:
        """Set bit 31 - i of the threshold if what is above it is still enough."""
        higher_B = threshold_B | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(rank_BV >= higher_B[:, None]), higher_B, threshold_B)

    start_B = jnp.zeros(logits_BV.shape[0], jnp.uint32)
    threshold_B = jax.lax.fori_loop(0, 32, step, start_B)
    return jnp.where(rank_BV >= threshold_B[:, None], logits_BV, -jnp.inf)


def _draw(logits_WV: Array, keys_B: Array, of_B: Array | None) -> Array:
    """One uniform number per key, looked up in the cumulated probabilities.

    In two steps, blocks and then tokens of one block: a cumulated sum over the whole vocabulary, or
    a random number for each token of it, would take longer than the model does.
    """
    W, V = logits_WV.shape
    weights_WV = jnp.exp(logits_WV - logits_WV.max(-1, keepdims=True))
    blocks_WNC = jnp.pad(weights_WV, ((0, 0), (0, -V % _BLOCK))).reshape(W, -1, _BLOCK)
    sums_WN = jnp.cumsum(blocks_WNC.sum(-1), axis=-1)
    sums_BN = sums_WN if of_B is None else sums_WN[of_B]
    uniform_B = jax.vmap(jax.random.uniform)(keys_B)
    block_B, rest_B = _look_up(sums_BN, uniform_B * sums_BN[:, -1])
    of_B = jnp.arange(W) if of_B is None else of_B
    inside_BC = jnp.cumsum(blocks_WNC[of_B, block_B], axis=-1)
    place_B, _ = _look_up(inside_BC, rest_B)
    return (block_B * _BLOCK + place_B).astype(jnp.int32)


def _look_up(cumulated_BN: Array, target_B: Array) -> tuple[Array, Array]:
    """First place whose cumulated sum exceeds the target, and what is left of the target there.

    Such a place adds something to the sum, so nothing of probability zero is ever drawn; rounding
    must not push the target to the very end, where there is no such place.
    """
    target_B = jnp.minimum(target_B, jnp.nextafter(cumulated_BN[:, -1], jnp.float32(0)))
    place_B = jnp.argmax(cumulated_BN > target_B[:, None], axis=-1)
    before_BN = jnp.pad(cumulated_BN, ((0, 0), (1, 0)))
    before_B = jnp.take_along_axis(before_BN, place_B[:, None], axis=1)[:, 0]
    return place_B, jnp.maximum(target_B - before_B, 0)
