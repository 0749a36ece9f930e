"""The weights that a policy is held near to, as training goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm.train.grpo.spec import GRPOSpec


def mover_of(spec: GRPOSpec) -> Callable[[Any, Any, Any], Any] | None:
    """How the reference follows the trained weights; None: it stays, or there is none."""
    if not spec.keeps_reference:
        return None
    if spec.reference == "ema":
        decay = spec.reference_decay
        return lambda step, trained, old: optax.incremental_update(trained, old, 1 - decay)
    if spec.reference == "periodic":
        every = spec.reference_every

        def copy(step: Any, trained: Any, old: Any) -> Any:
            return jax.tree.map(lambda t, o: jnp.where(step % every == 0, t, o), trained, old)

        return copy
    return None
