"""Packing: which pieces of documents share a row.

Best-fit decreasing: the longest pieces first, each into the fullest row that still has room. That
keeps whole documents together and leaves little padding unless their lengths fit badly (all 60 %
of a row, say); then some documents are cut to fill the gaps, so that padding stays under 1 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from llm.data.rows import Rows
from llm.data.split import Spans
from llm.data.token_cache import TokenCache

Array = np.ndarray[Any, Any]
_PADDING_LIMIT = 0.01


def cut_to_length(spans: Spans, seq_len: int) -> Spans:
    """Consecutive pieces of at most `seq_len`; all but a span's last are full."""
    counts = -(-spans.length // seq_len)
    first = np.cumsum(counts) - counts
    place = np.arange(counts.sum()) - np.repeat(first, counts)
    start = np.repeat(spans.start, counts) + place * seq_len
    length = np.minimum(np.repeat(spans.length, counts) - place * seq_len, seq_len)
    return Spans(start, length)


def pack(cache: TokenCache, spans: Spans, seq_len: int) -> Rows:
    """Rows of at most `seq_len` positions that hold every position of the spans once.

    Only what is trained everywhere is cut to fill gaps: half a conversation would be an answer
    without its question.
    """
    pieces = cut_to_length(spans, seq_len)
    row = best_fit_decreasing(pieces.length, seq_len)
    if cache.trained is None:
        pieces, row = _limit_padding(pieces, row, seq_len)
    order = np.argsort(row, kind="stable")
    first = np.searchsorted(row[order], np.arange(row.max(initial=-1) + 2))
    return Rows(cache, pieces.start[order], pieces.length[order].astype(np.int32), first)


def best_fit_decreasing(length: Array, capacity: int) -> Array:
    """The row of each piece, int64 [N]; rows count from 0.

    Exactly the textbook algorithm, but it moves all rows with equal room at once, so that it takes
    about as many steps as there are pairs of different lengths, not pieces.
    """
    row_of = np.zeros(len(length), np.int64)
    order = np.argsort(-length, kind="stable")
    # Rows by the room they have left, and a bit set of the sizes of room that occur.
    by_room: dict[int, list[Array]] = {}
    rooms = 0
    n_rows = 0
    for pieces in _groups(order, length):
        size = int(length[pieces[0]])
        done = 0
        while done < len(pieces):
            fitting = rooms >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                rows = by_room[room].pop()
                if not by_room[room]:
                    rooms ^= 1 << room
            else:
                room = capacity
                rows = n_rows + np.arange(-(-(len(pieces) - done) // (capacity // size)))
                n_rows += len(rows)
            # After one piece a row is the best fit for the next, until it has no room for more.
            each = room // size
            batch = pieces[done : done + each * len(rows)]
            full, rest = divmod(len(batch), each)
            row_of[batch] = np.repeat(rows, each)[: len(batch)]
            done += len(batch)
            partial = min(rest, 1)
            for some, left in (
                (rows[:full], room - each * size),
                (rows[full : full + partial], room - rest * size),
                (rows[full + partial :], room),
            ):
                if len(some) and left:
                    by_room.setdefault(left, []).append(some)
                    rooms |= 1 << left
    return row_of


def _groups(order: Array, length: Array) -> Iterator[Array]:
    """`order` cut where the length changes."""
    borders = np.flatnonzero(np.diff(length[order])) + 1
    return (group for group in np.split(order, borders) if len(group))


def _limit_padding(pieces: Spans, row: Array, seq_len: int) -> tuple[Spans, Array]:
    """Empty the rows with most padding into the gaps of others, cutting their pieces to fit."""
    total = int(pieces.length.sum())
    filled = np.bincount(row, weights=pieces.length).astype(np.int64)
    allowed = max(-(-total // seq_len), int(total / (seq_len * (1 - _PADDING_LIMIT))))
    if len(filled) <= allowed:
        return pieces, row
    by_fill = np.argsort(-filled, kind="stable")
    new_number = np.empty_like(by_fill)
    new_number[by_fill] = np.arange(len(by_fill))
    row = new_number[row]
    stays = row < allowed
    gaps = seq_len - filled[by_fill[:allowed]]
    moved = _fill_gaps(Spans(pieces.start[~stays], pieces.length[~stays]), gaps)
    return (
        Spans(
            np.concatenate([pieces.start[stays], moved[:, 0]]),
            np.concatenate([pieces.length[stays], moved[:, 1]]),
        ),
        np.concatenate([row[stays], moved[:, 2]]),
    )


def _fill_gaps(pieces: Spans, gaps: Array) -> Array:
    """Lay the pieces one after the other over the gaps, the widest gaps first.

    Returns:
        int64 [M, 3]: start, length and row of each part.
    """
    wide = np.argsort(-gaps, kind="stable")
    gap_ends, piece_ends = np.cumsum(gaps[wide]), np.cumsum(pieces.length)
    # A part ends where a piece ends or a gap ends, whichever comes first.
    ends = np.union1d(piece_ends, gap_ends[gap_ends < piece_ends[-1]])
    begins = np.concatenate([[0], ends[:-1]])
    piece = np.searchsorted(piece_ends, begins, side="right")
    start = pieces.start[piece] + begins - (piece_ends - pieces.length)[piece]
    rows = wide[np.searchsorted(gap_ends, begins, side="right")]
    return np.stack([start, ends - begins, rows], axis=1)
