"""The pretraining objective: predict the next token, everywhere but on padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from llm.train.cross_entropy import cross_entropy
from llm.train.step import Batch, Sums


@dataclass(frozen=True)
class NextToken:
    """Sum over tokens of the negative log-likelihood of the next one."""

    loss_chunk: int
    z_loss: float
    label_smoothing: float

    def __call__(self, model: Any, batch: Batch, dropout_keys_B: Key[Array, " B"] | None) -> Sums:
        """Sums over the rows of `batch`. Without dropout keys the objective is the plain loss."""
        hidden_BTD, _ = model(
            batch["tokens"],
            segment_ids_BT=batch["segment_ids"],
            positions_BT=batch["positions"],
            dropout_keys_B=dropout_keys_B,
        )
        weights_M = (batch["segment_ids"] > 0).astype(jnp.float32).ravel()
        sums = cross_entropy(
            hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
            model.head_VD().astype(hidden_BTD.dtype),
            batch["targets"].ravel(),
            weights_M,
            chunk=self.loss_chunk,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
        )
        return Sums(sums.objective, weights_M.sum(), {"loss": sums.nll})
