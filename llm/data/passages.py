"""Text to train a tokenizer on: passages of weighted sources, one after the other.

What is held out of them is kept aside as it passes by. Memory does not grow with the sources: a
passage, a document and some MB of held-out text are all that is held.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

import numpy as np

from llm.core.spec import RefusedError
from llm.data.lone_document import cut_place
from llm.data.source import Skipped, Source
from llm.data.split import hash_limit, held_out_documents
from llm.data.token_cache import hash_of

_PASSAGE = 2**14  # characters
_HELD_OUT = 2**21  # characters of a source that are kept to measure on


class HeldOut:
    """Some documents of each source that a tokenizer does not see, to measure it on.

    They are those that a training run on the same sources holds out, and of many those with the
    smallest hashes, up to 2 million characters of a source: a sample that does not depend on the
    order of the documents.

    Args:
        sources: read until it is certain that something of them is held out.
        fraction: about this share of the documents.

    Raises:
        RefusedError: a source holds no text.
    """

    def __init__(self, sources: Sequence[Source], fraction: float) -> None:
        self._fraction = fraction
        self._limit = hash_limit(fraction)
        self._exceptions: dict[int, bool] = {}
        self._lone: int | None = None
        self._kept = [_Smallest(_HELD_OUT) for _ in sources]
        self._decide([self._look_at(source) for source in sources])

    def _look_at(self, source: Source) -> dict[int, int]:
        """Bytes of documents by hash: of all of a source, or until some are seen on either side."""
        sizes: dict[int, int] = {}
        sides = set()
        skipped = Skipped()
        for document in source.documents(skipped):
            value = hash_of(document.text)
            sizes[value] = len(document.text.encode())
            sides.add(value < self._limit)
            if len(sides) == 2:
                break
        if not sizes:
            raise skipped.nothing_left(source.name)
        return sizes

    def _decide(self, sizes: list[dict[int, int]]) -> None:
        """What small sources need besides the limit, by the rules that a run splits them by."""
        arrays = [np.array(list(of_one), np.uint64) for of_one in sizes]
        masks = held_out_documents(arrays, self._fraction)
        for values, mask in zip(arrays, masks, strict=True):
            for value, held in zip(values.tolist(), mask.tolist(), strict=True):
                if held != (value < self._limit):
                    self._exceptions[value] = held
        if not any(mask.any() for mask in masks):
            everything = {value: size for of_one in sizes for value, size in of_one.items()}
            self._lone = max(everything, key=lambda value: everything[value])

    def without(self, source: int, text: str) -> str:
        """What there is to train on in a document; '' if all of it is held out.

        Args:
            source: number of its source.
            text: the document.
        """
        value = hash_of(text)
        if value == self._lone:
            place = cut_place(text, self._fraction)
            self._kept[source].add(value, text[place:])
            return text[:place]
        if self._exceptions.get(value, value < self._limit):
            self._kept[source].add(value, text)
            return ""
        return text

    def texts(self) -> list[list[str]]:
        """The held-out texts of each source; complete when the sources were gone through."""
        return [kept.texts() for kept in self._kept]


class _Smallest:
    """The texts with the smallest hashes, of many, about so many characters in all."""

    def __init__(self, characters: int) -> None:
        self._characters = characters
        self._total = 0
        self._heap: list[tuple[int, str]] = []  # the largest hash, negated, is the first
        self._known: set[int] = set()

    def add(self, value: int, text: str) -> None:
        if value in self._known:
            return
        self._known.add(value)
        text = text[: self._characters]
        self._total += len(text)
        heapq.heappush(self._heap, (-value, text))
        while self._total - len(self._heap[0][1]) >= self._characters:
            largest, dropped = heapq.heappop(self._heap)
            self._known.discard(-largest)
            self._total -= len(dropped)

    def texts(self) -> list[str]:
        return [text for _, text in sorted(self._heap, reverse=True)]


class Passages:
    """Passages spread evenly over each source, always the same.

    To spread them, sources are gone through once before, to count their characters (a file tells
    its bytes only, of all its fields). A source whose size is unknown (a stream) gives its
    beginning, since reading it all would mean fetching it twice.

    Attributes:
        taken: how many characters each source has given so far.

    Args:
        sources: where the text is.
        weights: share of each source.
        characters: about so many in all; None takes all of a lone source, and as much of several
            as leaves them the shares that their weights say.
        held_out: is given the documents first, and says what is left of them.

    Raises:
        RefusedError: `characters` is needed, as the size of a source is not known.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        characters: int | None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.taken = [0] * len(sources)
        self._sources = sources
        self._held_out = held_out
        self._totals = self._count(characters)
        self._wanted = _shares(self._totals, weights, characters)

    def __iter__(self) -> Iterator[str]:
        for number, source in enumerate(self._sources):
            skipped = Skipped()
            yield from self._of_one(number, skipped)
            if not self.taken[number]:
                raise skipped.nothing_left(source.name)

    def _count(self, characters: int | None) -> list[int | None]:
        """How many characters there are to train on in each source; None where it is not known."""
        if characters is None:
            if len(self._sources) == 1:
                return [None]
            for source in self._sources:
                if source.size is None:
                    raise RefusedError(
                        f"characters=null: say how many, since {source.name} does not tell its "
                        "size and shares of a mixture need one"
                    )
        return [
            None if source.size is None else sum(map(len, self._texts(number, Skipped())))
            for number, source in enumerate(self._sources)
        ]

    def _texts(self, number: int, skipped: Skipped) -> Iterator[str]:
        """What there is to train on in each document of a source."""
        for document in self._sources[number].documents(skipped):
            if self._held_out is None:
                yield document.text
            else:
                yield self._held_out.without(number, document.text)

    def _of_one(self, number: int, skipped: Skipped) -> Iterator[str]:
        wanted, total = self._wanted[number], self._totals[number]
        share = 1.0
        if wanted is not None and total is not None:
            share = min(1.0, wanted / max(total, 1))
        credit = 0.0
        for text in self._texts(number, skipped):
            for start in range(0, len(text), _PASSAGE):
                passage = text[start : start + _PASSAGE]
                credit += len(passage) * share
                if credit < len(passage) and self.taken[number]:
                    continue
                credit -= len(passage)
                self.taken[number] += len(passage)
                yield passage
                if wanted is not None and self.taken[number] >= wanted:
                    return


def _shares(
    totals: Sequence[int | None], weights: Sequence[float], characters: int | None
) -> list[int | None]:
    """How many characters to take of each source; None for all.

    Args:
        totals: how many each has; known of all if `characters` is None and there are several.
        weights: share of each source.
        characters: of all together.
    """
    if characters is None:
        if len(totals) == 1:
            return [None]
        pairs = zip(totals, weights, strict=True)
        per_weight = [total / weight for total, weight in pairs if total is not None]
        # Rounded up, so that all is taken of the source that sets the limit.
        return [math.ceil(min(per_weight) * weight) for weight in weights]
    return [int(characters * weight / sum(weights)) for weight in weights]
