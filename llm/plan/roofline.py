"""How fast a stage could be: products at the device's peak, everything else at its bandwidth.

An optimistic estimate: no launch of a kernel takes time, no wait for the host, and no product stays
below the peak, so a measured step takes longer. Attention is counted in full, as MFU does; where
most of the time is attention, a kernel that skips what is hidden can beat it.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llm.models.specs import ModelSpec
from llm.plan.target import Target
from llm.train.parts import Parts
from llm.train.trainable import n_frozen_matmul, split

_PASSES = 6  # over the activations: written and read twice, and the same for their gradients
_LOGITS = 20  # bytes per logit and step: fp32 written and read twice, its gradient in bf16 as well


@dataclass(frozen=True)
class Work:
    """What a stage does per optimizer step, over all devices."""

    flops: float
    traffic: float
    """Bytes between devices and their memory."""

    def seconds(self, target: Target) -> float | None:
        """At best; None if the device is not known."""
        if not target.flops or not target.bandwidth:
            return None
        devices = target.spec.devices
        return (self.flops / target.flops + self.traffic / target.bandwidth) / devices


def model_flops(parts: Parts, tokens: int) -> float:
    """That a step has to do, without what it computes again: what MFU counts."""
    experiment, model = parts.experiment, parts.model
    frozen = n_frozen_matmul(model, experiment.trainer.freeze)
    return tokens * model.flops_per_token(experiment.data.seq_len, frozen)


def train_step(parts: Parts, tokens: int, kept_per_token: float) -> Work:
    """Forward, backward, update.

    Args:
        parts: of the run.
        tokens: that go through the model.
        kept_per_token: bytes of activations that the backward pass reads, on one device.
    """
    model, policy = parts.model, parts.hardware.remat
    state = parts.factory.template
    trained, _ = split(model, parts.experiment.trainer.freeze, state.params)
    weights = sum(p.size for p in jax.tree.leaves(trained))
    slots = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
    # Weights and what the optimizer keeps are read and written; gradients written, read twice.
    update = (2 * (4 * weights + slots) + 3 * 4 * weights) * parts.hardware.data_parallel
    again = 0.0
    if policy != "none":
        again = attention_flops(model, parts.experiment.data.seq_len)
    if policy == "block":
        again += 2 * (model.n_matmul_params - model.d_model * model.vocab)
    kept = kept_per_token * parts.hardware.tensor
    traffic = tokens * (_PASSES * kept + _LOGITS * model.vocab) + update
    return Work(model_flops(parts, tokens) + tokens * again, traffic)


def forward(parts: Parts, tokens: int, seq_len: int) -> Work:
    """A pass without gradients and logits."""
    model = parts.model
    per_token = 2 * (model.n_matmul_params - model.d_model * model.vocab)
    flops = tokens * (per_token + attention_flops(model, seq_len))
    return Work(flops, weights_read(parts))


def score(parts: Parts, tokens: int) -> Work:
    """A pass without gradients, and the log-probabilities of its tokens."""
    model = parts.model
    work = forward(parts, tokens, parts.experiment.data.seq_len)
    head = 2 * tokens * model.d_model * model.vocab
    return Work(work.flops + head, work.traffic + 8 * tokens * model.vocab)


def decode(parts: Parts, rows: int, prompt: int, new: int, cache_per_token: float) -> Work:
    """`new` tokens for each row, one after the other.

    Each reads all weights and what the caches hold by then.
    """
    model = parts.model
    mean = prompt + new / 2
    flops = rows * new * (2 * model.n_matmul_params + attention_flops(model, int(mean)))
    traffic = new * (weights_read(parts) + rows * mean * cache_per_token + 8 * rows * model.vocab)
    return Work(flops, traffic)


def attention_flops(model: ModelSpec, seq_len: int) -> float:
    """Scores and values for one token, forward."""
    return 4 * model.n_layers * model.n_heads * model.head_size * seq_len


def weights_read(parts: Parts) -> float:
    """Bytes of the matrices that a pass reads once, where each part of the rows is."""
    width = jnp.dtype(parts.hardware.compute_dtype).itemsize
    return parts.model.n_matmul_params * width * parts.hardware.row_shards
