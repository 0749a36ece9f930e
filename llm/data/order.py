"""The order of rows: a pure function of the seed, the epoch and the weights.

Nothing is drawn and kept: row g of the stream can be computed for any g, so a run may stop and go
on anywhere, on any number of hosts and loader processes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_BLOCK = 4096
# One stream of random numbers per purpose, so that none of them repeats another's.
_ROWS, _MEMBERS = 0, 1


def permutation(count: int, *key: int) -> Array:
    """A random order of 0 .. count - 1, the same for the same key (non-negative integers).

    Sorts raw output of the Philox generator: numpy promises that this never changes between its
    versions, which it does not for `Generator.permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    order = np.argsort(bits, kind="stable")
    return order.astype(np.int32) if count < 2**31 else order


class RowStream:
    """An endless stream of rows, shuffled anew in each epoch, mixed by weight.

    Each source runs through its own epochs: every row once, then every row once in another order.
    Of each 4,096 consecutive rows, a source has exactly its share (to the nearest row), in a
    random arrangement. Weights therefore are shares of *rows*, which for packed rows are all but
    equal to shares of tokens.

    Args:
        n_rows: rows of each source.
        weights: their weights.
        seed: a non-negative integer.
    """

    def __init__(self, n_rows: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.n_rows = list(n_rows)
        self._seed = seed
        self._shares = _shares(weights)
        self._orders: dict[tuple[int, int], Array] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k != "_lock"}
        return {**kept, "_orders": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def rows(self, first: int, count: int) -> tuple[Array, Array]:
        """Rows `first` .. `first + count` of the stream: (source, row), int64 [count] each."""
        source, ordinal = self._members(first, count)
        row = np.zeros(count, np.int64)
        for n, n_rows in enumerate(self.n_rows):
            mine = np.flatnonzero(source == n)
            epochs, places = np.divmod(ordinal[mine], max(n_rows, 1))
            for epoch in np.unique(epochs):
                now = epochs == epoch
                row[mine[now]] = self._order(n, int(epoch))[places[now]]
        return source, row

    def _members(self, first: int, count: int) -> tuple[Array, Array]:
        """The source of each row of the stream, and how many rows that source gave before."""
        if len(self.n_rows) == 1:
            return np.zeros(count, np.int64), first + np.arange(count)
        blocks = range(first // _BLOCK, (first + count - 1) // _BLOCK + 1)
        parts = [self._block(block) for block in blocks]
        skip = first - blocks[0] * _BLOCK
        source, ordinal = (
            np.concatenate(part)[skip : skip + count] for part in zip(*parts, strict=True)
        )
        return source, ordinal

    def _block(self, block: int) -> tuple[Array, Array]:
        """`_members` for one block of the stream."""
        source = np.repeat(np.arange(len(self._shares)), self._shares)
        ordinal = np.concatenate([block * share + np.arange(share) for share in self._shares])
        # The sources in a random arrangement, each one's rows in order.
        source = source[permutation(_BLOCK, self._seed, _MEMBERS, block)]
        arranged = np.empty_like(ordinal)
        arranged[np.argsort(source, kind="stable")] = ordinal
        return source, arranged

    def _order(self, source: int, epoch: int) -> Array:
        """A source's order in an epoch; those of the last two epochs are kept."""
        with self._lock:
            if (source, epoch) not in self._orders:
                self._orders = {
                    key: order
                    for key, order in self._orders.items()
                    if key[0] != source or abs(key[1] - epoch) == 1
                }
                self._orders[source, epoch] = permutation(
                    self.n_rows[source], self._seed, _ROWS, source, epoch
                )
            return self._orders[source, epoch]


def _shares(weights: Sequence[float]) -> list[int]:
    """Rows of each source in a block: by largest remainder, and at least one."""
    exact = np.asarray(weights, np.float64) / sum(weights) * _BLOCK
    shares = np.maximum(np.floor(exact), 1).astype(np.int64)
    while shares.sum() < _BLOCK:
        shares[np.argmax(exact - shares)] += 1
    while shares.sum() > _BLOCK:
        shares[np.argmax(shares - exact)] -= 1
    return [int(share) for share in shares]
