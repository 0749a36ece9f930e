"""Which documents are held out for evaluation.

Decided by a hash of the document's text, so that the choice depends on nothing else (not on the
seed, the order or the number of documents) and copies of a document are on the same side, across
the sources of a mixture too. Of a lone document the end is held out, see `llm.data.lone_document`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger

from llm.data.lone_document import cut_the_longest
from llm.data.source import Source
from llm.data.token_cache import TokenCache, tokenise
from llm.data.tokenizer import Tokenizer

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


def tokenise_and_split(
    sources: Sequence[Source], tokenizer: Tokenizer, cache_dir: Path, fraction: float
) -> tuple[list[TokenCache], Split]:
    """Tokenise sources (cached), and hold out about `fraction` of their documents.

    Each source keeps at least one document to train on, and at least one document is held out of
    all together. Where none can be spared, it is the end of the longest; of conversations nothing,
    since the end of one says little without its beginning.

    Args:
        sources: where documents come from, all in one format.
        tokenizer: of the model.
        cache_dir: for what is tokenised.
        fraction: 0 holds out nothing.

    Raises:
        RefusedError: a source cannot be read or holds no text, or its one document cannot be cut.
    """
    caches = [tokenise(source, tokenizer, cache_dir) for source in sources]
    held = held_out_documents([np.asarray(cache.hashes) for cache in caches], fraction)
    if fraction and not any(mask.any() for mask in held):
        if all(source.format.trains_all for source in sources):
            caches, held = cut_the_longest(sources, caches, tokenizer, cache_dir, fraction)
        else:
            logger.warning("no conversation can be spared for evaluation: nothing is held out")
    return caches, split_documents(caches, held)


def split_documents(caches: Sequence[TokenCache], held: Sequence[Array]) -> Split:
    """The documents of some caches on either side.

    Args:
        caches: tokenised sources.
        held: bool [D] of each, which documents are held out.
    """
    pairs = [(_whole_documents(cache), mask) for cache, mask in zip(caches, held, strict=True)]
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
        fraction: about this share; 0 holds out nothing.
    """
    if not fraction:
        return [np.zeros(len(values), bool) for values in hashes]
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
