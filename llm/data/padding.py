"""Padded rows: one document (or piece of a long one) per row, batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llm.data.packing import cut_to_length
from llm.data.rows import EMPTY, Rows
from llm.data.split import Spans
from llm.data.token_cache import TokenCache

Array = np.ndarray[Any, Any]


def one_per_row(cache: TokenCache, spans: Spans, seq_len: int) -> Rows:
    """A row for each span; a longer one than `seq_len` takes several, one after the other."""
    pieces = cut_to_length(spans, seq_len)
    count = len(pieces.start)
    return Rows(cache, pieces.start, pieces.length.astype(np.int32), np.arange(count + 1))


class BatchTable(NamedTuple):
    """Some rows, grouped into batches in which all rows belong to one bucket.

    N batches over R rows; batch n has rows `order[begin[n] : begin[n] + size[n]]`.
    """

    order: Array  # int64 [R]
    begin: Array  # int64 [N]
    size: Array  # int64 [N], fewer than the batch has room for where a bucket has a remainder
    bucket: Array  # int64 [N], index into the buckets

    def __len__(self) -> int:
        return len(self.begin)

    def rows(self, index: int, room: int) -> Array:
        """Which rows batch `index` holds: int64 [room], `EMPTY` where it has too few."""
        chosen = np.full(room, EMPTY, np.int64)
        begin, size = self.begin[index], self.size[index]
        chosen[:size] = self.order[begin : begin + size]
        return chosen


def group_by_length(length: Array, buckets: Sequence[int], rooms: Sequence[int]) -> BatchTable:
    """Batches of the rows in the order given, bucket by bucket; no row is left out.

    Args:
        length: int [R], positions of each row.
        buckets: row lengths, ascending; the last holds the longest row.
        rooms: rows in a batch of each bucket.
    """
    bucket_of = np.searchsorted(np.asarray(buckets), length)
    order = np.argsort(bucket_of, kind="stable")
    counts = np.bincount(bucket_of, minlength=len(buckets))
    room = np.asarray(rooms)
    n_batches = -(-counts // room)
    bucket = np.repeat(np.arange(len(buckets)), n_batches)
    place = np.arange(len(bucket)) - np.repeat(np.cumsum(n_batches) - n_batches, n_batches)
    begin = (np.cumsum(counts) - counts)[bucket] + place * room[bucket]
    size = np.minimum(counts[bucket] - place * room[bucket], room[bucket])
    return BatchTable(order, begin, size, bucket)
