"""Rows of a batch: from the plan (which stretches of tokens) to arrays.

Shapes: B rows of a batch, T positions of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm.data.token_cache import TokenCache

Array = np.ndarray[Any, Any]
ARRAYS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")
"""Of a batch, each int32 [B, T]; see `collate`."""
EMPTY = -1
"""A row number that stands for a row of padding only."""


@dataclass(frozen=True)
class Rows:
    """The plan of all rows of one source: each a list of pieces, each a stretch of tokens.

    Attributes:
        cache: where the tokens are.
        start: int64 [P], first input of each piece in `cache.tokens`.
        length: int32 [P], positions of each piece.
        first: int64 [R + 1], the first piece of each row.
    """

    cache: TokenCache
    start: Array
    length: Array
    first: Array

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def positions(self) -> int:
        """Positions in use in all rows."""
        return int(self.length.sum(dtype=np.int64))

    def lengths(self) -> Array:
        """Positions in use in each row, int64 [R]."""
        ends = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)])
        return ends[self.first[1:]] - ends[self.first[:-1]]


def collate(plans: Sequence[Rows], source_B: Array, row_B: Array, seq_len: int) -> dict[str, Array]:
    """The arrays of some rows.

    Args:
        plans: the sources' rows.
        source_B: which plan each row is from.
        row_B: its number there; `EMPTY` for a row of padding.
        seq_len: T.

    Returns:
        int32 [B, T] each: `tokens` (inputs), `targets` (the token after each input),
        `segment_ids` (1, 2, ... for the pieces of a row, 0 for padding), `positions` (0, 1, ...
        in each piece) and `loss_mask` (1 where the target is to be predicted). Padding holds
        zeros, which are also a token's id: masks come from `segment_ids`.
    """
    shape = (len(row_B), seq_len)
    batch = {name: np.zeros(shape, np.int32) for name in ARRAYS}
    for source, plan in enumerate(plans):
        mine = np.flatnonzero((source_B == source) & (row_B != EMPTY))
        if len(mine):
            _fill(batch, plan, mine, row_B[mine], seq_len)
    return batch


def _fill(batch: dict[str, Array], plan: Rows, into: Array, rows: Array, seq_len: int) -> None:
    """Write the plan's `rows` into rows `into` of the batch: all pieces at once."""
    counts = plan.first[rows + 1] - plan.first[rows]
    number = _count_up(counts)  # of each piece in its row
    piece = np.repeat(plan.first[rows], counts) + number
    length = plan.length[piece].astype(np.int64)
    position = _count_up(length)
    # Rows are flat stretches of seq_len; a piece begins where the ones before it in its row end.
    ends = np.cumsum(length)
    before_row = np.repeat((ends - length)[np.cumsum(counts) - counts], counts)
    begin = np.repeat(into, counts) * seq_len + (ends - length) - before_row
    to = np.repeat(begin, length) + position
    source = np.repeat(plan.start[piece], length) + position
    batch["tokens"].reshape(-1)[to] = plan.cache.tokens[source]
    batch["targets"].reshape(-1)[to] = plan.cache.tokens[source + 1]
    batch["segment_ids"].reshape(-1)[to] = np.repeat(number + 1, length)
    batch["positions"].reshape(-1)[to] = position
    trained = plan.cache.trained
    batch["loss_mask"].reshape(-1)[to] = 1 if trained is None else trained[source + 1]


def _count_up(counts: Array) -> Array:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)
