"""Which documents are held out for evaluation.

Decided by a hash of the document's text, so that the choice depends on nothing else (not on the
seed, the order or the number of documents) and copies of a document are on the same side, across
the sources of a mixture too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from loguru import logger

from llm.data.token_cache import TokenCache

Array = np.ndarray[Any, Any]


class Spans(NamedTuple):
    """Stretches of a cache's tokens, each (a part of) one document.

    A span of length n has n inputs, from `start` on, and n targets, from `start + 1` on. A whole
    document's span is its start token and text as inputs, its text and separator as targets.
    """

    start: Array  # int64 [N]
    length: Array  # int64 [N]


class Split(NamedTuple):
    """Spans to train on and spans held out, one of each per source."""

    train: list[Spans]
    held_out: list[Spans]


def split_documents(caches: Sequence[TokenCache], fraction: float) -> Split:
    """Hold out about `fraction` of the documents; 0 holds out none.

    Each source keeps at least one document to train on, and at least one document is held out of
    all together. Where every source has just one, the end of the longest is held out.
    """
    spans = [_whole_documents(cache) for cache in caches]
    nothing = [Spans(span.start[:0], span.length[:0]) for span in spans]
    if fraction == 0:
        return Split(spans, nothing)
    hashes = [np.asarray(cache.hashes) for cache in caches]
    held = held_out_documents(hashes, fraction)
    if not any(mask.any() for mask in held):
        return _hold_out_an_end(spans, hashes, fraction)
    pairs = list(zip(spans, held, strict=True))
    return Split([_take(s, ~mask) for s, mask in pairs], [_take(s, mask) for s, mask in pairs])


def _whole_documents(cache: TokenCache) -> Spans:
    offsets = np.asarray(cache.offsets)
    return Spans(offsets[:-1], np.diff(offsets) - 1)


def _take(spans: Spans, mask: Array) -> Spans:
    return Spans(spans.start[mask], spans.length[mask])


def hash_limit(fraction: float) -> int:
    """Documents with a smaller hash are held out; hashes are uniform on 64 bits."""
    return min(int(fraction * 2**64), 2**64 - 1)


def held_out_documents(hashes: Sequence[Array], fraction: float) -> list[Array]:
    """Which documents of each source are held out; none at all if that is impossible.

    Args:
        hashes: uint64 [D] of each source's documents, see `llm.data.token_cache.hashes_of`.
        fraction: about this share.
    """
    held = [values < np.uint64(hash_limit(fraction)) for values in hashes]
    for values, mask in zip(hashes, held, strict=True):
        if mask.all():
            released = values.max()
            for others, other_mask in zip(hashes, held, strict=True):
                other_mask[others == released] = False
    if any(mask.any() for mask in held):
        return held
    # None was: the text with the smallest hash whose absence leaves each source another one.
    needed = [values[0] for values in hashes if (values == values[0]).all()]
    candidates = np.setdiff1d(np.concatenate(hashes), np.array(needed, np.uint64))
    if not len(candidates):
        return held
    return [values == candidates[0] for values in hashes]


def _hold_out_an_end(spans: list[Spans], hashes: list[Array], fraction: float) -> Split:
    """Cut the longest document in two: train on its beginning, evaluate on its end."""
    source = int(np.argmax([span.length.max() for span in spans]))
    longest = int(np.argmax(spans[source].length))
    length = int(spans[source].length[longest])
    keep = max(1, min(round(length * (1 - fraction)), length - 2))
    logger.warning(
        "there is only one document to train on: its last {:,} of {:,} tokens are held out",
        length - keep,
        length,
    )
    train = []
    for span, values in zip(spans, hashes, strict=True):
        copies = values == hashes[source][longest]  # a copy's end must not be trained on either
        train.append(Spans(span.start, np.where(copies, keep, span.length)))
    end = Spans(spans[source].start[longest : longest + 1] + keep, np.array([length - keep]))
    nothing = [Spans(span.start[:0], span.length[:0]) for span in spans]
    return Split(train, [end if n == source else nothing[n] for n in range(len(spans))])
