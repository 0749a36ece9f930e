"""What becomes of conversations that are longer than a row, or have nothing to train."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from llm.data.packing import cut_to_length
from llm.data.split import Spans
from llm.data.token_cache import TokenCache

Array = np.ndarray[Any, Any]


def fit(cache: TokenCache, spans: Spans, seq_len: int, too_long: str) -> tuple[Spans, Counter[str]]:
    """Spans of at most `seq_len` positions, each with something to train.

    Args:
        cache: where the tokens are; says which are trained.
        spans: whole conversations.
        seq_len: positions in a row.
        too_long: cut_right keeps the beginning, cut_left the end, split makes several of one, drop
            keeps nothing.

    Returns:
        The spans, and how many conversations were too long and how many pieces were left out for
        having nothing to train.
    """
    excess = spans.length - seq_len
    long = excess > 0
    if too_long == "split":
        spans = cut_to_length(spans, seq_len)
    elif too_long == "drop":
        spans = Spans(spans.start[~long], spans.length[~long])
    else:
        shift = np.where(long, excess, 0) if too_long == "cut_left" else 0
        spans = Spans(spans.start + shift, np.minimum(spans.length, seq_len))
    useful = trained_targets(cache, spans) > 0
    counts = Counter(too_long=int(long.sum()), nothing_to_train=int((~useful).sum()))
    return Spans(spans.start[useful], spans.length[useful]), counts


def trained_targets(cache: TokenCache, spans: Spans) -> Array:
    """Tokens to be predicted in each span, int64 [N]."""
    if cache.trained is None or not len(spans.start):
        return spans.length.astype(np.int64)
    # Sums between consecutive borders; every second one is a span's, the others lie in between.
    borders = np.stack([spans.start + 1, spans.start + 1 + spans.length], axis=1).ravel()
    padded = np.append(cache.trained, False)  # a border may be the end
    sums = np.add.reduceat(padded, borders, dtype=np.int64)[::2]
    return np.where(spans.length > 0, sums, 0)
