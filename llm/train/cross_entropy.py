"""Linear head and cross-entropy in one, in chunks, so that [batch, time, vocab] never exists."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class LossSums(NamedTuple):
    """Sums over tokens in nats, fp32. Divided by the global token count once, by the caller."""

    objective: Float[Array, ""]
    """What is minimised: negative log-likelihood, smoothed if asked for, plus the z-loss."""
    nll: Float[Array, ""]
    """The plain negative log-likelihood (carries no gradient)."""


class _Cut(NamedTuple):
    """How M tokens are cut into n chunks: C / shards of each shard's tokens go into each."""

    tokens: int
    chunk: int
    shards: int

    def into_chunks(self, array: Array) -> Array:
        """[M, ...] as [n, C, ...]; the last chunk is filled up with zeros (weight 0)."""
        each = self.tokens // self.shards
        chunk = min(self.chunk, each)
        rest = array.shape[1:]
        fill = [(0, 0), (0, -each % chunk)] + [(0, 0)] * len(rest)
        padded = jnp.pad(array.reshape(self.shards, each, *rest), fill)
        split = padded.reshape(self.shards, -1, chunk, *rest).swapaxes(0, 1)
        return split.reshape(-1, self.shards * chunk, *rest)

    def from_chunks(self, array: Array) -> Array:
        """The inverse."""
        n, C, *rest = array.shape
        split = array.reshape(n, self.shards, C // self.shards, *rest).swapaxes(0, 1)
        padded = split.reshape(self.shards, -1, *rest)
        return padded[:, : self.tokens // self.shards].reshape(self.tokens, *rest)


def cross_entropy(
    hidden_MD: Float[Array, "M D"],
    head_VD: Float[Array, "V D"],
    targets_M: Int[Array, " M"],
    weights_M: Float[Array, " M"],
    *,
    chunk: int,
    shards: int = 1,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> LossSums:
    """Weighted sum over tokens of -log softmax(hidden head^T)[target].

    The gradient is worked out in the forward pass, while a chunk's logits are at hand, and scaled
    in the backward pass; so no logits are kept and none are computed twice.

    Args:
        hidden_MD: final hidden states.
        head_VD: output projection, one row per token of the vocabulary.
        targets_M: next tokens.
        weights_M: 1 where the token counts, 0 where it is padding.
        chunk: tokens of each shard whose logits exist at the same time.
        shards: equal stretches of tokens, each on devices of its own: a chunk takes from all of
            them, so that every device works out logits of its own tokens only.
        z_loss: weight of log(partition)^2 (Chowdhery et al. 2022).
        label_smoothing: share of the target spread evenly over the vocabulary.
    """
    cut = _Cut(len(hidden_MD), chunk, shards)
    return _cross_entropy(hidden_MD, head_VD, targets_M, weights_M, cut, z_loss, label_smoothing)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _cross_entropy(
    hidden_MD: Array,
    head_VD: Array,
    targets_M: Array,
    weights_M: Array,
    cut: _Cut,
    z_loss: float,
    label_smoothing: float,
) -> LossSums:
    def body(sums: LossSums, piece: tuple[Array, ...]) -> tuple[LossSums, None]:
        new, _ = _chunk_loss(piece, head_VD, z_loss, label_smoothing)
        return LossSums(*map(jnp.add, sums, new)), None

    pieces = tuple(map(cut.into_chunks, (hidden_MD, targets_M, weights_M)))
    sums, _ = jax.lax.scan(body, _zero(), pieces)
    return sums


def _forward(
    hidden_MD: Array,
    head_VD: Array,
    targets_M: Array,
    weights_M: Array,
    cut: _Cut,
    z_loss: float,
    label_smoothing: float,
) -> tuple[LossSums, tuple[Array, Array]]:
    def body(
        carry: tuple[LossSums, Array], piece: tuple[Array, ...]
    ) -> tuple[tuple[LossSums, Array], Array]:
        sums, d_head_VD = carry
        hidden_CD = piece[0]
        new, d_logits_CV = _chunk_loss(piece, head_VD, z_loss, label_smoothing)
        d_logits_CV = jax.lax.optimization_barrier(d_logits_CV)  # see llm.models.linear
        d_hidden_CD = d_logits_CV @ head_VD
        d_head_VD += jnp.einsum(
            "CV,CD->VD", d_logits_CV, hidden_CD, preferred_element_type=jnp.float32
        )
        return (LossSums(*map(jnp.add, sums, new)), d_head_VD), d_hidden_CD

    pieces = tuple(map(cut.into_chunks, (hidden_MD, targets_M, weights_M)))
    start = (_zero(), jnp.zeros(head_VD.shape, jnp.float32))
    (sums, d_head_VD), d_hidden = jax.lax.scan(body, start, pieces)
    return sums, (cut.from_chunks(d_hidden), d_head_VD.astype(head_VD.dtype))


def _backward(
    cut: _Cut,
    z_loss: float,
    label_smoothing: float,
    gradients: tuple[Array, Array],
    cotangent: LossSums,
) -> tuple[Array, Array, None, None]:
    del cut, z_loss, label_smoothing
    d_hidden_MD, d_head_VD = gradients
    scale = cotangent.objective
    return (
        (d_hidden_MD * scale).astype(d_hidden_MD.dtype),
        (d_head_VD * scale).astype(d_head_VD.dtype),
        None,
        None,
    )


_cross_entropy.defvjp(_forward, _backward)


def _chunk_loss(
    piece: tuple[Array, ...],
    head_VD: Array,
    z_loss: float,
    label_smoothing: float,
) -> tuple[LossSums, Array]:
    """Sums over one chunk, and the gradient of the objective with respect to its logits."""
    hidden_CD, targets_C, weights_C = piece
    logits_CV = jnp.einsum("CD,VD->CV", hidden_CD, head_VD, preferred_element_type=jnp.float32)
    V = logits_CV.shape[1]
    log_z_C = jax.nn.logsumexp(logits_CV, axis=1)
    target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
    nll_C = log_z_C - target_C
    objective_C = nll_C
    if label_smoothing:
        objective_C = (1 - label_smoothing) * nll_C + label_smoothing * (
            log_z_C - logits_CV.mean(axis=1)
        )
    objective_C = objective_C + z_loss * log_z_C**2
    softmax_CV = jnp.exp(logits_CV - log_z_C[:, None])
    is_target_CV = targets_C[:, None] == jnp.arange(V, dtype=targets_C.dtype)
    d_logits_CV = (1 + 2 * z_loss * log_z_C)[:, None] * softmax_CV
    d_logits_CV -= jnp.where(is_target_CV, 1 - label_smoothing, 0) + label_smoothing / V
    d_logits_CV = (d_logits_CV * weights_C[:, None]).astype(hidden_CD.dtype)
    sums = LossSums(jnp.sum(objective_C * weights_C), jnp.sum(nll_C * weights_C))
    return sums, d_logits_CV


def _zero() -> LossSums:
    return LossSums(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
