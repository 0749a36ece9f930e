"""Held-out loss and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from llm.train.stopping import StopRequestedError, StopSignal


def evaluate(
    eval_step: Callable[[Any, Any, Any], dict[str, jax.Array]],
    params: Any,
    token_bytes: jax.Array,
    batches: Iterable[Any],
    stop: StopSignal,
) -> dict[str, float]:
    """Loss over held-out batches.

    Args:
        eval_step: `Stepper.eval_step`, compiled.
        params: weights.
        token_bytes: bytes that each token of the vocabulary stands for.
        batches: batches placed on the devices.
        stop: looked at before each batch.

    Returns:
        `eval/loss` (nats per token, the token that ends a document included) and
        `eval/bits_per_byte` (all nats over all bytes of the text: comparable between tokenizers).

    Raises:
        StopRequestedError: a stop was asked for.
    """
    sums: list[dict[str, jax.Array]] = []
    for batch in batches:
        if stop():
            raise StopRequestedError
        sums.append(eval_step(params, token_bytes, batch))
    totals = {
        k: math.fsum(float(np.asarray(s[k])) for s in sums) for k in ("loss", "tokens", "bytes")
    }
    loss, tokens, size = totals["loss"], totals["tokens"], totals["bytes"]
    return {
        "eval/loss": loss / tokens if tokens else math.nan,
        "eval/bits_per_byte": loss / math.log(2) / size if size else math.nan,
    }
