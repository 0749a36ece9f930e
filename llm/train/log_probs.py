"""Log-probabilities of given tokens, and entropies, without [batch, time, vocab] logits.

B rows, T places of a row, C tokens to score per row, D width, V vocabulary, W columns at a time.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llm.core.argmax import argmax

WIDEST = 128  # columns: what a row does not fill of the last ones is gone through for nothing


class TokenScores(NamedTuple):
    """Of each token, fp32, in nats; 0 beyond the tokens of a row."""

    log_probs: Float[Array, "B C"]
    entropies: Float[Array, "B C"]
    """Of the distribution that the token was one draw of."""


def token_scores(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    places_BC: Int[Array, "B C"],
    targets_BC: Int[Array, "B C"],
    counts_B: Int[Array, " B"],
    *,
    chunk: int,
    temperature: float = 1.0,
) -> TokenScores:
    """Scores of tokens under softmax(hidden head^T / temperature).

    The vocabulary is gone through some columns at a time, and once more in the backward pass, so
    that no logits are kept. Only as many columns are looked at as the fullest row has tokens.

    Args:
        hidden_BTD: final hidden states.
        head_VD: output projection, one row per token of the vocabulary.
        places_BC: whose hidden state predicts each token; several may share one.
        targets_BC: the tokens.
        counts_B: tokens of each row; they come first.
        chunk: tokens whose logits exist at the same time.
        temperature: divides the logits.
    """
    C = places_BC.shape[1]
    width, columns = _filled(chunk, places_BC, targets_BC)
    scores = _scores(width, temperature, hidden_BTD, head_VD, *columns, counts_B)
    return TokenScores(*(x[:, :C] for x in scores))


class Likelihoods(NamedTuple):
    """Of each token; 0 and False beyond the tokens of a row."""

    log_probs: Float[Array, "B C"]
    """fp32, in nats."""
    likeliest: Bool[Array, "B C"]
    """No token is likelier there (of several, the first counts)."""


def likelihoods(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    places_BC: Int[Array, "B C"],
    targets_BC: Int[Array, "B C"],
    counts_B: Int[Array, " B"],
    *,
    chunk: int,
) -> Likelihoods:
    """What an evaluation asks of given tokens; the arguments are those of `token_scores`.

    No entropies and no gradient: one product and two reductions per token.
    """
    C = places_BC.shape[1]
    width, columns = _filled(chunk, places_BC, targets_BC)

    def visit(i: Array, found: Likelihoods) -> Likelihoods:
        places_BW, targets_BW, real_BW = _columns(i, width, *columns, counts_B)
        hidden_BWD = jnp.take_along_axis(hidden_BTD, places_BW[..., None], axis=1)
        logits_BWV = _logits(hidden_BWD, head_VD)
        target_BW = jnp.take_along_axis(logits_BWV, targets_BW[..., None], axis=2)[..., 0]
        log_prob_BW = target_BW - jax.nn.logsumexp(logits_BWV, axis=-1)
        likeliest_BW = argmax(logits_BWV) == targets_BW
        new = jnp.where(real_BW, log_prob_BW, 0.0), real_BW & likeliest_BW
        return Likelihoods(*(_put(i, width, old, x) for old, x in zip(found, new, strict=True)))

    shape = columns[0].shape
    nothing = Likelihoods(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool))
    found = jax.lax.fori_loop(0, _n_columns(width, counts_B), visit, nothing)
    return Likelihoods(*(x[:, :C] for x in found))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scores(
    width: int,
    temperature: float,
    hidden_BTD: Array,
    head_VD: Array,
    places_BC: Array,
    targets_BC: Array,
    counts_B: Array,
) -> TokenScores:
    def visit(i: Array, scores: TokenScores) -> TokenScores:
        places_BW, targets_BW, real_BW = _columns(i, width, places_BC, targets_BC, counts_B)
        hidden_BWD = jnp.take_along_axis(hidden_BTD, places_BW[..., None], axis=1)
        log_p_BWV = _log_softmax(hidden_BWD, head_VD, temperature)
        log_prob_BW = jnp.take_along_axis(log_p_BWV, targets_BW[..., None], axis=2)[..., 0]
        entropy_BW = -(jnp.exp(log_p_BWV) * log_p_BWV).sum(-1)
        new = (jnp.where(real_BW, x, 0.0) for x in (log_prob_BW, entropy_BW))
        return TokenScores(*(_put(i, width, old, x) for old, x in zip(scores, new, strict=True)))

    zeros = jnp.zeros(places_BC.shape, jnp.float32)
    return jax.lax.fori_loop(0, _n_columns(width, counts_B), visit, TokenScores(zeros, zeros))


def _forward(
    width: int, temperature: float, *arrays: Array
) -> tuple[TokenScores, tuple[Array, ...]]:
    return _scores(width, temperature, *arrays), arrays


def _backward(
    width: int, temperature: float, saved: tuple[Array, ...], cotangent: TokenScores
) -> tuple[Array | None, ...]:
    hidden_BTD, head_VD, places_BC, targets_BC, counts_B = saved
    rows_B1 = jnp.arange(len(places_BC))[:, None]

    def visit(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        d_hidden_BTD, d_head_VD = sums
        places_BW, targets_BW, real_BW = _columns(i, width, places_BC, targets_BC, counts_B)
        d_log_prob_BW, d_entropy_BW = (
            jnp.where(real_BW, jax.lax.dynamic_slice_in_dim(x, i * width, width, 1), 0.0)
            for x in cotangent
        )
        hidden_BWD = jnp.take_along_axis(hidden_BTD, places_BW[..., None], axis=1)
        log_p_BWV = _log_softmax(hidden_BWD, head_VD, temperature)
        p_BWV = jnp.exp(log_p_BWV)
        entropy_BW1 = -(p_BWV * log_p_BWV).sum(-1, keepdims=True)
        is_target_BWV = targets_BW[..., None] == jnp.arange(p_BWV.shape[-1])
        d_BWV = d_log_prob_BW[..., None] * (is_target_BWV - p_BWV)
        d_BWV -= d_entropy_BW[..., None] * p_BWV * (log_p_BWV + entropy_BW1)
        d_logits_BWV = (d_BWV / temperature).astype(hidden_BTD.dtype)
        d_logits_BWV = jax.lax.optimization_barrier(d_logits_BWV)  # see llm.models.linear
        d_hidden_BWD = jnp.einsum(
            "BWV,VD->BWD", d_logits_BWV, head_VD, preferred_element_type=jnp.float32
        )
        d_head_VD += jnp.einsum(
            "BWV,BWD->VD", d_logits_BWV, hidden_BWD, preferred_element_type=jnp.float32
        )
        return d_hidden_BTD.at[rows_B1, places_BW].add(d_hidden_BWD), d_head_VD

    zeros = (jnp.zeros(x.shape, jnp.float32) for x in (hidden_BTD, head_VD))
    d_hidden_BTD, d_head_VD = jax.lax.fori_loop(0, _n_columns(width, counts_B), visit, (*zeros,))
    return d_hidden_BTD.astype(hidden_BTD.dtype), d_head_VD.astype(head_VD.dtype), None, None, None


_scores.defvjp(_forward, _backward)


def _filled(chunk: int, places_BC: Array, targets_BC: Array) -> tuple[int, tuple[Array, Array]]:
    """Columns of a stretch, and the arrays filled up to a whole number of stretches."""
    B, C = places_BC.shape
    width = min(max(chunk // B, 1), WIDEST, C)
    fill = ((0, 0), (0, -C % width))
    return width, (jnp.pad(places_BC, fill), jnp.pad(targets_BC, fill))


def _n_columns(width: int, counts_B: Array) -> Array:
    """Stretches of columns that hold a token."""
    return -(-counts_B.max() // width)


def _columns(i: Array, width: int, *arrays: Array) -> tuple[Array, Array, Array]:
    """Places and targets of stretch i, and which of them are tokens of the row."""
    *sliced, counts_B = arrays
    places_BW, targets_BW = (jax.lax.dynamic_slice_in_dim(x, i * width, width, 1) for x in sliced)
    return places_BW, targets_BW, i * width + jnp.arange(width) < counts_B[:, None]


def _put(i: Array, width: int, all_BC: Array, new_BW: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(all_BC, new_BW, i * width, 1)


def _log_softmax(hidden_BWD: Array, head_VD: Array, temperature: float) -> Array:
    return jax.nn.log_softmax(_logits(hidden_BWD, head_VD) / temperature, axis=-1)


def _logits(hidden_BWD: Array, head_VD: Array) -> Array:
    return jnp.einsum("BWD,VD->BWV", hidden_BWD, head_VD, preferred_element_type=jnp.float32)
