"""Which texts share a row, and which rows go through the model together.

Rows have a few widths, and the batches of a width one size, so that a handful of programs is
compiled. Padding is gone through as well, so rows that are there anyway are filled.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llm.generate.rows import bucket

_NARROWEST = 512  # positions of a row, where the model sees so many


class Batch(NamedTuple):
    """Rows of one width that go through the model together."""

    width: int
    """Positions of a row."""
    rows: list[list[int]]
    """Numbers of the texts in each; a row can be empty."""


def batches(sizes: Sequence[int], *, widest: int, tokens: int) -> Iterator[Batch]:
    """Lay texts into rows, by best fit decreasing; each text comes once.

    The widest rows are made for the texts that need them, and filled up with shorter ones.

    Args:
        sizes: positions that each text takes, at most `widest`.
        widest: positions of a row, at most.
        tokens: positions of a batch, about.
    """
    waiting = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    while waiting:
        width = bucket(sizes[waiting[0]], _NARROWEST, widest)
        narrower = 1 << (width - 1).bit_length() - 1 if width > _NARROWEST else 0
        rows = _Rows(width)
        n_long = sum(sizes[number] > narrower for number in waiting)
        for number in waiting[:n_long]:
            if not rows.put(number, sizes[number]):
                rows.add(1)
                rows.put(number, sizes[number])
        B = bucket(min(max(tokens // width, 1), len(rows.members)))
        rows.add(-len(rows.members) % B)
        waiting = [n for n in waiting[n_long:] if not rows.put(n, sizes[n])]
        for first in range(0, len(rows.members), B):
            yield Batch(width, rows.members[first : first + B])


class _Rows:
    """Rows as they fill."""

    def __init__(self, width: int) -> None:
        self.members: list[list[int]] = []
        self._width = width
        self._room: list[tuple[int, int]] = []  # what a row has left, and which; the fullest first

    def add(self, count: int) -> None:
        for row in range(len(self.members), len(self.members) + count):
            self.members.append([])
            insort(self._room, (self._width, row))

    def put(self, number: int, size: int) -> bool:
        """Put a text into the fullest row that has room, if there is one."""
        at = bisect_left(self._room, (size, -1))
        if at == len(self._room):
            return False
        room, row = self._room.pop(at)
        insort(self._room, (room - size, row))
        self.members[row].append(number)
        return True
