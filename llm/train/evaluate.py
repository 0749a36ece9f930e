"""Held-out loss and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from llm.train.stopping import StopRequestedError, StopSignal


def evaluate(
    eval_step: Callable[[Any, Any, Any], dict[str, jax.Array]],
    params: Any,
    token_bytes: jax.Array,
    batches: Iterable[tuple[int, Any]],
    source_names: Sequence[str],
    stop: StopSignal,
) -> dict[str, float]:
    """Loss over held-out batches.

    Args:
        eval_step: `Stepper.eval_step`, compiled.
        params: weights.
        token_bytes: bytes that each token of the vocabulary stands for.
        batches: batches placed on the devices, each with the number of its source.
        source_names: names of the sources.
        stop: looked at before each batch.

    Returns:
        `eval/loss` (nats per token, the token that ends a document included) and
        `eval/bits_per_byte` (all nats over all bytes of the text: comparable between tokenizers);
        where there are several sources, both of each as `eval/<name>/loss` and so on.

    Raises:
        StopRequestedError: a stop was asked for.
    """
    sums: list[tuple[int, dict[str, jax.Array]]] = []
    for source, batch in batches:
        if stop():
            raise StopRequestedError
        sums.append((source, eval_step(params, token_bytes, batch)))
    metrics = _means("eval", [new for _, new in sums])
    if len(source_names) > 1:
        for number, name in enumerate(source_names):
            own = [new for source, new in sums if source == number]
            metrics |= _means(f"eval/{name}", own) if own else {}
    return metrics


def _means(prefix: str, sums: list[dict[str, jax.Array]]) -> dict[str, float]:
    totals = {
        k: math.fsum(float(np.asarray(s[k])) for s in sums) for k in ("loss", "tokens", "bytes")
    }
    loss, tokens, size = totals["loss"], totals["tokens"], totals["bytes"]
    return {
        f"{prefix}/loss": loss / tokens if tokens else math.nan,
        f"{prefix}/bits_per_byte": loss / math.log(2) / size if size else math.nan,
    }
