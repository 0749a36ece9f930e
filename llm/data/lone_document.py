"""Where no document can be spared for evaluation: the longest is cut in two, its end is held out.

It is cut as text, before it is tokenised, so that the end is the same text whatever the tokenizer
and bits per byte of it compare. Each part is a document of its own then, with a cache that its
fraction is a part of the name of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from llm.core.spec import RefusedError
from llm.data.formats import Document
from llm.data.source import Skipped, Source
from llm.data.token_cache import TokenCache, hash_of, tokenise
from llm.data.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]


def cut_place(text: str, fraction: float) -> int:
    """The character at which the held-out end begins: about `fraction` of the text, not all."""
    return max(1, min(round(len(text) * (1 - fraction)), len(text) - 1))


def cut_the_longest(
    sources: Sequence[Source],
    caches: Sequence[TokenCache],
    tokenizer: Tokenizer,
    cache_dir: Path,
    fraction: float,
) -> tuple[list[TokenCache], list[Array]]:
    """Cut the longest document (in bytes), wherever a copy of it is.

    Args:
        sources: where documents come from.
        caches: of each, tokenised.
        tokenizer: of the model.
        cache_dir: for what is tokenised.
        fraction: about this share of the document is held out.

    Returns:
        The caches, in which that document is two, and bool [D] of each, which documents are ends.

    Raises:
        RefusedError: it is a single character.
    """
    longest = max(caches, key=lambda cache: cache.bytes.max())
    lone = int(longest.hashes[np.argmax(longest.bytes)])
    found, held = [], []
    for source, cache in zip(sources, caches, strict=True):
        copies = np.asarray(cache.hashes) == np.uint64(lone)
        cut = cache
        if copies.any():
            cut = tokenise(_CutInTwo(source, lone, fraction, cache_dir), tokenizer, cache_dir)
        ends = np.zeros(len(cut.hashes), bool)
        ends[np.cumsum(1 + copies)[copies] - 1] = True
        if cache is longest:
            logger.warning(
                "{}: no document can be spared for evaluation: the last {:,} of {:,} bytes of the "
                "longest are held out", source.name, cut.bytes[ends][0], cache.bytes.max(),
            )  # fmt: skip
        found.append(cut)
        held.append(ends)
    return found, held


class _CutInTwo(Source):
    """A source in which one document (with its copies) is two: its beginning, and its end."""

    def __init__(self, source: Source, lone: int, fraction: float, cache_dir: Path) -> None:
        # The source itself counts against `max_documents`, before the cut.
        super().__init__(source.spec.replace(max_documents=None), cache_dir, source.format)
        self._source, self._lone, self._fraction = source, lone, fraction

    @property
    def size(self) -> int | None:
        return self._source.size

    def _identity(self) -> Sequence[object]:
        return ["cut in two", self._source.fingerprint(), self._lone, self._fraction]

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        for document in self._source.documents(skipped):
            text = document.text
            if hash_of(text) != self._lone:
                yield document
                continue
            if len(text) < 2:
                raise RefusedError(
                    f"{document.origin}: data.eval_fraction={self._fraction}: the only document "
                    "is a single character, no part of which can be held out"
                )
            place = cut_place(text, self._fraction)
            yield document._replace(text=text[:place])
            yield document._replace(text=text[place:])
