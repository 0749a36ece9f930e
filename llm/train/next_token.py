"""The objective of pretraining and fine-tuning: predict the next token where the mask says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from llm.train.cross_entropy import cross_entropy
from llm.train.step import Batch, Sums

_NOISE_SITE = 2**20  # no place of dropout in a model has this number


@dataclass(frozen=True)
class NextToken:
    """Sum over the tokens of `loss_mask` of the negative log-likelihood."""

    loss_chunk: int
    """Tokens of each device whose logits exist at the same time."""
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    noise_alpha: float = 0.0
    """Strength of the noise that NEFTune adds to embeddings while training."""
    row_shards: int = 1
    """Parts that the rows of a batch are in, each on devices of its own."""

    def __call__(self, model: Any, batch: Batch, dropout_keys_B: Key[Array, " B"] | None) -> Sums:
        """Sums over the rows of `batch`. Without dropout keys the objective is the plain loss."""
        noise_BTD = None
        if self.noise_alpha and dropout_keys_B is not None:
            noise_BTD = embedding_noise(
                dropout_keys_B, batch["segment_ids"], model.spec.d_model, self.noise_alpha
            )
        hidden_BTD, _ = model(
            batch["tokens"],
            segment_ids_BT=batch["segment_ids"],
            positions_BT=batch["positions"],
            dropout_keys_B=dropout_keys_B,
            embedding_noise_BTD=noise_BTD,
        )
        weights_M = batch["loss_mask"].astype(jnp.float32).ravel()
        sums = cross_entropy(
            hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
            model.head_VD().astype(hidden_BTD.dtype),
            batch["targets"].ravel(),
            weights_M,
            chunk=self.loss_chunk,
            shards=self.row_shards,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
        )
        count = weights_M.sum()
        return Sums(sums.objective, loss=sums.nll, divisor=count, tokens=count, metrics={})


def embedding_noise(
    keys_B: Key[Array, " B"], segment_ids_BT: Int[Array, "B T"], D: int, alpha: float
) -> Float[Array, "B T D"]:
    """Uniform noise of magnitude alpha / sqrt(L D) (NEFTune, Jain et al. 2023).

    L is the length of the document that a token belongs to, not of its row: a packed document gets
    noise as strong as alone.
    """
    T = segment_ids_BT.shape[1]

    def one_row(key: Array, segment_ids_T: Array) -> Array:
        sizes = jnp.zeros(T + 1, jnp.float32).at[segment_ids_T].add(1.0)
        scale_T = alpha / jnp.sqrt(sizes[segment_ids_T] * D)
        key = jax.random.fold_in(key, _NOISE_SITE)
        return scale_T[:, None] * jax.random.uniform(key, (T, D), minval=-1.0, maxval=1.0)

    return jax.vmap(one_row)(keys_B, segment_ids_BT)
