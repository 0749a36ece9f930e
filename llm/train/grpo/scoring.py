"""A pass over a batch that only looks: log-probabilities under other weights than the trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llm.models.binding import bind
from llm.models.specs import ModelSpec
from llm.train.grpo.policy_gradient import PolicyGradient, completion_scores
from llm.train.step import Batch, Stepper


@dataclass(frozen=True)
class Scorer:
    """Makes the function to be jitted."""

    model: ModelSpec
    stepper: Stepper
    """How the model runs, how many rows of it at once, and with what loss."""

    def __call__(self, params: Any, batch: Batch) -> Float[Array, "R C"]:
        """Of each completion token of a batch, see `llm.train.grpo.rows`."""
        stepper, objective = self.stepper, self.stepper.objective
        assert isinstance(objective, PolicyGradient)
        model = bind(
            self.model,
            params,
            compute_dtype=stepper.compute_dtype,
            attention=stepper.attention,
            mesh=stepper.mesh,
        )
        pieces = stepper.in_micro_batches(batch)

        def visit(i: Array, found: Array) -> Array:
            piece = jax.tree.map(lambda x: x[i], pieces)
            scores = completion_scores(model, piece, objective.loss_chunk, objective.temperature)
            return found.at[i].set(scores.log_probs)

        zeros = jnp.zeros(pieces["scored"].shape, jnp.float32)
        found = jax.lax.fori_loop(0, stepper.n_used(pieces), visit, zeros)
        rows: Array = stepper.in_rows(found)
        return rows
