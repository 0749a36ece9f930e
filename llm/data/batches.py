"""Batches by number: batch n is a pure function of the seed and n.

`PackedBatches` and `PaddedBatches` are endless; `EvalBatches` goes through the held-out rows once.
With several hosts each one asks for its own slice of every batch's rows.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm.data.order import RowStream, permutation
from llm.data.padding import BatchTable, group_by_length
from llm.data.rows import EMPTY, Rows, collate

Array = np.ndarray[Any, Any]
Batch = dict[str, Array]
_ORDER, _EVAL = 2, 3  # purposes of a permutation, next to those in `order`


class Shard(NamedTuple):
    """This host's part of a batch: rows `begin` .. `stop` of `batch_size`."""

    batch_size: int
    begin: int
    stop: int

    @classmethod
    def of(cls, batch_size: int, index: int, count: int) -> Shard:
        """The slice of host `index` of `count`; `count` must divide `batch_size`."""
        rows = batch_size // count
        return cls(batch_size, index * rows, (index + 1) * rows)

    def times(self, n: int) -> Shard:
        """The slice of a batch of `n` times as many rows."""
        return Shard(n * self.batch_size, n * self.begin, n * self.stop)


class Bucket(NamedTuple):
    """Rows of at most `seq_len` positions, and this host's part of a batch of them."""

    seq_len: int
    shard: Shard


def _grouped(length: Array, buckets: Sequence[Bucket]) -> BatchTable:
    rooms = [bucket.shard.batch_size for bucket in buckets]
    return group_by_length(length, [bucket.seq_len for bucket in buckets], rooms)


class Batches(abc.ABC):
    """An endless sequence of batches with random access; safe to use from several threads."""

    @abc.abstractmethod
    def batch(self, index: int) -> Batch:
        """Batch `index` (from 0): int32 [B, T] arrays, see `collate`; B is this host's share."""


class PackedBatches(Batches):
    """Rows in the stream's order, `batch_size` at a time; epochs follow without a seam."""

    def __init__(self, plans: Sequence[Rows], stream: RowStream, shard: Shard, seq_len: int):
        self._plans = list(plans)
        self._stream = stream
        self._shard = shard
        self._seq_len = seq_len

    def batch(self, index: int) -> Batch:  # noqa: D102
        size, begin, stop = self._shard
        source, row = self._stream.rows(index * size + begin, stop - begin)
        return collate(self._plans, source, row, self._seq_len)


class PaddedBatches(Batches):
    """Rows of similar length together.

    An epoch is as many rows of the stream as there are rows. They are sorted into buckets in the
    stream's order; each bucket is cut into batches, a remainder filled up with empty rows; and the
    batches are shuffled.
    """

    def __init__(
        self,
        plans: Sequence[Rows],
        stream: RowStream,
        buckets: Sequence[Bucket],
        seed: int,
    ):
        self._plans = list(plans)
        self._lengths = [plan.lengths().astype(np.int32) for plan in plans]
        self._stream = stream
        self._buckets = list(buckets)
        self._seed = seed
        self._per_epoch = len(_grouped(self._lengths[0], buckets))
        self._first = [0]  # number of the first batch of each epoch, as far as known
        self._epochs: dict[int, _Epoch] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k != "_lock"}
        return {**kept, "_epochs": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def batch(self, index: int) -> Batch:  # noqa: D102
        with self._lock:
            number, place = self._locate(index)
            epoch = self._epoch(number)
        place = int(epoch.order[place])
        seq_len, (room, begin, stop) = self._buckets[epoch.table.bucket[place]]
        mine = epoch.table.rows(place, room)[begin:stop]
        row = np.where(mine == EMPTY, EMPTY, epoch.row[mine])
        return collate(self._plans, epoch.source[mine], row, seq_len)

    def _locate(self, index: int) -> tuple[int, int]:
        """Epoch of a batch, and its place in it."""
        if len(self._plans) == 1:
            # Every epoch has the same rows and so as many batches.
            return divmod(index, self._per_epoch)
        while self._first[-1] <= index:
            self._first.append(self._first[-1] + len(self._epoch(len(self._first) - 1).table))
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return number, index - self._first[number]

    def _epoch(self, number: int) -> _Epoch:
        """An epoch's plan; the last two are kept."""
        if number not in self._epochs:
            count = sum(self._stream.n_rows)
            source, row = self._stream.rows(number * count, count)
            length = np.zeros(count, np.int32)
            for n, lengths in enumerate(self._lengths):
                length[source == n] = lengths[row[source == n]]
            table = _grouped(length, self._buckets)
            order = permutation(len(table), self._seed, _ORDER, number)
            self._epochs = {k: v for k, v in self._epochs.items() if abs(k - number) == 1}
            self._epochs[number] = _Epoch(table, order, source, row)
        return self._epochs[number]


class _Epoch(NamedTuple):
    """Batches of R rows: batch n of the epoch is batch `order[n]` of the table."""

    table: BatchTable
    order: Array
    source: Array  # [R]
    row: Array  # [R]


class EvalBatches:
    """Every held-out row once, in an order that no seed changes; each batch is of one source.

    The order is shuffled, so that the first batches are a fair sample of all of them.
    """

    def __init__(self, plans: Sequence[Rows], buckets: Sequence[Bucket]):
        self.plans = list(plans)
        self._buckets = list(buckets)
        self._rows = [permutation(len(plan), _EVAL, n) for n, plan in enumerate(plans)]
        self._tables = [
            _grouped(plan.lengths()[rows], self._buckets)
            for plan, rows in zip(plans, self._rows, strict=True)
        ]
        counts = [len(table) for table in self._tables]
        order = permutation(sum(counts), _EVAL)
        self._source = np.repeat(np.arange(len(plans)), counts)[order]
        self._place = np.concatenate([np.arange(count) for count in counts])[order]

    def __len__(self) -> int:
        return len(self._place)

    def take(self, limit: int | None) -> Iterator[tuple[int, Batch]]:
        """The first `limit` batches, or all, each with the number of its source.

        The last batch of each bucket is filled up with empty rows.
        """
        for source, place in zip(self._source[:limit], self._place[:limit], strict=True):
            table = self._tables[source]
            seq_len, (room, begin, stop) = self._buckets[table.bucket[place]]
            mine = table.rows(int(place), room)[begin:stop]
            row = np.where(mine == EMPTY, EMPTY, self._rows[source][mine])
            yield int(source), collate(self.plans, np.full(len(row), source), row, seq_len)
