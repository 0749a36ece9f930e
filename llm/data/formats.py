"""From a record to a document's text, and from documents to tokens.

`PlainText` takes one field as it is: pretraining. `llm.data.conversations` reads conversations.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer, split_long

_CALL_CHARACTERS = 2**21


class Document(NamedTuple):
    """A record of a source."""

    text: str
    """What it says; for a conversation all that is said in it."""
    origin: str
    """Where it came from (file, file:line or dataset row), for messages."""
    fields: Mapping[str, Any]
    """The record as it was read."""


class Encoded(NamedTuple):
    """A document as tokens: what a row is cut from."""

    tokens: Int[np.ndarray, " n"]
    trained: Bool[np.ndarray, " n"] | None
    """Which tokens are to be predicted; None: all."""


class Format(abc.ABC):
    """Which fields are read, and how they become tokens."""

    trains_all: bool
    """Every token is predicted: `Encoded.trained` is None."""

    @abc.abstractmethod
    def columns(self, available: Sequence[str], where: str) -> list[str]:
        """Which of a table's columns to read.

        Raises:
            RefusedError: it lacks what is needed; `where` names it.
        """

    @abc.abstractmethod
    def identity(self) -> Sequence[object]:
        """JSON values that change when the same record would give another document."""

    @abc.abstractmethod
    def document(self, record: Mapping[str, Any], origin: str) -> Document:
        """The document of a record; its text is empty if there is nothing to read in it.

        Raises:
            RefusedError: a field is missing or is of another type.
        """

    @abc.abstractmethod
    def encode(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
        """Tokens of each document.

        Raises:
            RefusedError: a document cannot be encoded; it is named.
        """


class PlainText(Format):
    """One field is the text: start token, text, separator; all of it is trained.

    Args:
        field: its name.
    """

    trains_all = True

    def __init__(self, field: str) -> None:
        self._field = field

    def columns(self, available: Sequence[str], where: str) -> list[str]:  # noqa: D102
        if self._field not in available:
            raise RefusedError(f"text_field={self._field}: {where} has {', '.join(available)}")
        return [self._field]

    def identity(self) -> Sequence[object]:  # noqa: D102
        return [self._field]

    def document(self, record: Mapping[str, Any], origin: str) -> Document:  # noqa: D102
        return Document(text_of(record, self._field, origin), origin, record)

    def encode(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:  # noqa: D102
        parts = [split_long(document.text) for document in documents]
        ids = _encode([part for of_one in parts for part in of_one], tokenizer)
        for of_one in parts:
            pieces = itertools.islice(ids, len(of_one))
            start, stop = [tokenizer.start_id], [tokenizer.separator_id]
            arrays = [np.array(piece, np.int32) for piece in (start, *pieces, stop)]
            yield Encoded(np.concatenate(arrays), None)


def text_of(record: Mapping[str, Any], field: str, origin: str) -> str:
    """A field's text; null counts as empty.

    Raises:
        RefusedError: no such field, or it holds no text.
    """
    if field not in record:
        raise RefusedError(f"{origin}: no field {field!r}; it has {', '.join(map(str, record))}")
    value = record[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RefusedError(f"{origin}: field {field!r} holds a {type(value).__name__}, not text")
    return value


def _encode(parts: list[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Tokenise in calls of bounded size, since one document may have very many parts."""
    first = 0
    while first < len(parts):
        last, characters = first, 0
        while last < len(parts) and characters < _CALL_CHARACTERS:
            characters += len(parts[last])
            last += 1
        yield from tokenizer.encode_batch(parts[first:last])
        first = last
