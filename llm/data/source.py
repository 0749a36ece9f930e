"""Where documents come from: what every kind of source has.

Every source knows a fingerprint of its content without parsing it, about how many bytes it holds,
and yields its documents in a fixed order. A document is one record; the `Format` says which of its
fields are read and what its text is. A document must fit in memory; nothing else here grows with
the corpus.
"""

from __future__ import annotations

import abc
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm.core.spec import RefusedError
from llm.data.digests import digest
from llm.data.formats import Document, Format
from llm.data.specs import DocumentsSpec

_EXAMPLES = 5


class Skipped:
    """What was left out and why: counts, and the first few names for the report."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, origin: str) -> None:
        """Count one document that is left out."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(origin)

    def describe(self) -> str:
        """One line such as `2 binary (a.bin, b.bin), 1 empty`; '' if nothing was."""
        parts = []
        for reason, count in sorted(self.counts.items()):
            names = ", ".join(self.examples[reason]) + (", ..." if count > _EXAMPLES else "")
            parts.append(f"{count} {reason}" + (f" ({names})" if reason != "empty" else ""))
        return ", ".join(parts)

    def nothing_left(self, source: str) -> RefusedError:
        """What to raise if nothing is left of a source.

        Args:
            source: its name.
        """
        left_out = f" (left out: {self.describe()})" if self.counts else ""
        return RefusedError(f"{source}: it holds no text{left_out}")


class Source(abc.ABC):
    """A fixed sequence of documents."""

    def __init__(self, spec: DocumentsSpec, cache_dir: Path, format: Format) -> None:
        self.spec = spec
        self.format = format
        self._cache_dir = cache_dir

    @property
    @abc.abstractmethod
    def size(self) -> int | None:
        """About how many bytes of text there are; None if only reading would tell."""

    @abc.abstractmethod
    def _identity(self) -> Sequence[object]:
        """Values that change when the content does."""

    @abc.abstractmethod
    def _read(self, skipped: Skipped) -> Iterator[Document]:
        """All documents, empty ones included; what cannot be read goes to `skipped`."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return f"{self.spec.source}:{self.spec.path}" if self.spec.path else self.spec.source

    def fingerprint(self) -> str:
        """Names the sequence of documents: equal when their content and order are equal."""
        spec = self.spec
        parts = (spec.source, spec.max_documents, *self._identity())
        return digest(*parts, *self.format.identity())

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """The documents that hold text, at most `max_documents`, in a fixed order.

        Args:
            skipped: is told what is left out: empty, binary or undecodable documents.

        Raises:
            RefusedError: a broken line or file, named, or a missing field.
        """
        return itertools.islice(self._usable(skipped), self.spec.max_documents)

    def _usable(self, skipped: Skipped) -> Iterator[Document]:
        for document in self._read(skipped):
            if not document.text:
                skipped.add("empty", document.origin)
            elif not _is_unicode(document.text):
                skipped.add("with unpaired surrogates", document.origin)
            else:
                yield document


def _is_unicode(text: str) -> bool:
    """False for halves of surrogate pairs, which JSON can express and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
