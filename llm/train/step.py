"""One optimizer step, and one evaluation step: pure functions to be jitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Key

from llm.models.binding import bind
from llm.models.specs import ModelSpec
from llm.train.optimizer_specs import OptimizerSpec
from llm.train.state import TrainState
from llm.train.trainable import joined, split

Batch = dict[str, Array]
Metrics = dict[str, Array]


class Sums(NamedTuple):
    """What a loss returns. Nothing is divided here: the step divides once, globally."""

    objective: Float[Array, ""]
    """What is minimised, once it is divided by `divisor`."""
    loss: Float[Array, ""]
    """What is reported as the loss, divided by `divisor` too."""
    divisor: Float[Array, ""]
    """Tokens that count, where each counts the same."""
    tokens: Float[Array, ""]
    """Tokens that are trained."""
    metrics: dict[str, Float[Array, ""]]
    """Further sums over those tokens, reported as their means."""


@runtime_checkable
class Objective(Protocol):
    """A loss: sums over the tokens of a batch, never means."""

    def __call__(self, model: Any, batch: Batch, dropout_keys_B: Key[Array, " B"] | None) -> Sums:
        """Sums over the rows of `batch`."""


@dataclass(frozen=True)
class Stepper:
    """Builds the step functions of a run from its parts."""

    model: ModelSpec
    remat: str
    attention: str
    objective: Objective
    optimizer: OptimizerSpec
    schedule: Callable[[Any], optax.Schedule]
    """Learning rate per step, for a peak."""
    seed: int
    compute_dtype: str
    micro_batches: int
    grad_clip: float | None
    ema_decay: float | None
    freeze: Sequence[str] = ()
    mesh: Mesh | AbstractMesh | None = None
    """If there are several devices."""
    move_reference: Callable[[Array, Any, Any], Any] | None = None
    """From steps done, trained weights and reference to the next reference; None: it stays."""

    def train_step(
        self, state: TrainState, batch: Batch, peaks: Mapping[str, Any] | None = None
    ) -> tuple[TrainState, Metrics]:
        """Gradients over all micro-batches, clipped; one update; metrics as means per token.

        `peaks` are peak learning rates, see `OptimizerSpec.peaks`: given as arrays, they make one
        program do for a sweep over rates. Without, they are the optimizer's own.
        """
        peaks = peaks or self.optimizer.peaks
        rates = {name: self.schedule(peak) for name, peak in peaks.items()}
        optimizer = self.optimizer.build(rates)
        rows = len(batch["tokens"])
        # One key per row from (seed, step, row): a row's dropout depends on nothing else.
        step_key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        keys_B = jax.vmap(lambda row: jax.random.fold_in(step_key, row))(jnp.arange(rows))
        trained, frozen = split(self.model, self.freeze, state.params)
        gradients, sums = self._gradients(trained, batch, keys_B, frozen)
        divisor = jnp.where(
            sums.divisor > 0, sums.divisor, 1
        )  # nothing counts: no gradient, not NaN
        norm = optax.tree.norm(gradients) / divisor
        scale = 1 / divisor
        if self.grad_clip is not None:
            scale = scale * jnp.minimum(1.0, self.grad_clip / jnp.maximum(norm, 1e-12))
        gradients = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if self.ema_decay is not None:
            ema = optax.incremental_update(trained, ema, 1 - self.ema_decay)
        metrics = {
            "train/loss": sums.loss / divisor,
            **{name: total / sums.tokens for name, total in sums.metrics.items()},
            "train/grad_norm": norm,
            "train/lr": jnp.asarray(rates["lr"](state.step), jnp.float32),
            # Those that went through the model: what speed is measured by.
            "tokens": (batch["segment_ids"] > 0).sum(dtype=jnp.float32),
        }
        params = joined(frozen, trained)
        reference = state.reference
        if self.move_reference is not None:
            reference = self.move_reference(state.step + 1, trained, reference)
        return TrainState(state.step + 1, params, opt_state, ema, reference), metrics

    def _gradients(
        self, params: Any, batch: Batch, keys_B: Array, frozen: Any = None
    ) -> tuple[Any, Sums]:
        """Gradient of the summed objective over the whole batch, and its sums.

        With respect to `params`; `frozen` are the other weights, if these are not all.
        """

        def loss(params: Any, batch: Batch, keys_B: Array) -> tuple[Array, Sums]:
            model = self.bind(joined(frozen or {}, params))
            sums = self.objective(model, batch, keys_B)
            return sums.objective, sums

        gradient = jax.grad(loss, has_aux=True)
        if self.micro_batches == 1:
            return gradient(params, batch, keys_B)

        pieces = self.in_micro_batches((batch, keys_B))
        shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)

        def add(i: Array, total: Any) -> Any:
            new = gradient(params, *jax.tree.map(lambda x: x[i], pieces))
            return jax.tree.map(lambda t, n: t + n.astype(t.dtype), total, new)

        return jax.lax.fori_loop(0, self.n_used(pieces[0]), add, zeros)

    def in_micro_batches(self, rows: Any) -> Any:
        """Arrays [B, ...] as [micro-batch, rows, ...]; the inverse is `in_rows`."""

        def split(x: Array) -> Array:
            # Micro-batch i takes rows i, i + n, i + 2n, ...: each device gives the same share.
            return x.reshape(-1, self.micro_batches, *x.shape[1:]).swapaxes(0, 1)

        return jax.tree.map(split, rows)

    @staticmethod
    def in_rows(pieces: Any) -> Any:
        """Arrays [micro-batch, rows, ...] as [B, ...]."""
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), pieces)

    @staticmethod
    def n_used(pieces: Batch) -> Array:
        """Micro-batches up to the last that is not all padding: the others are not run."""
        used = (pieces["segment_ids"] > 0).any(axis=(1, 2))
        return (jnp.arange(1, len(used) + 1) * used).max()

    def bind(self, params: Any) -> Any:
        """The model with these weights, as it runs here."""
        return bind(
            self.model,
            params,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
            attention=self.attention,
            mesh=self.mesh,
        )

    def eval_step(self, params: Any, token_bytes_V: Array, batch: Batch) -> Metrics:
        """Sums over a held-out batch: `loss` in nats, `tokens`, `bytes` of the targets."""
        model = self.bind(params)

        def look(batch: Batch) -> Metrics:
            sums = self.objective(model, batch, None)
            byte_count = jnp.where(batch["loss_mask"] > 0, token_bytes_V[batch["targets"]], 0)
            return {
                "loss": sums.loss,
                "tokens": sums.tokens,
                "bytes": byte_count.astype(jnp.float32).sum(),
            }

        if self.micro_batches == 1:
            return look(batch)
        pieces = self.in_micro_batches(batch)

        def add(i: Array, total: Metrics) -> Metrics:
            new = look(jax.tree.map(lambda x: x[i], pieces))
            return jax.tree.map(jnp.add, total, new)

        zeros = dict.fromkeys(("loss", "tokens", "bytes"), jnp.zeros((), jnp.float32))
        sums: Metrics = jax.lax.fori_loop(0, self.n_used(pieces), add, zeros)
        return sums
