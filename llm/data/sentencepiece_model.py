"""SentencePiece's .model files: byte pairs by score (Llama 1 and 2, Mistral) or unigrams (T5).

The file is a protocol buffer, ModelProto of sentencepiece_model.proto; what is read of it are its
pieces, and the settings that change how text is cut. It becomes a tokenizer of the `tokenizers`
library, which computes the same (tests compare it with SentencePiece itself) but for this: of ways
to cut that are equally good, such as `))` `)` and `)` `))`, it may take another; and the text after
a piece that is matched whole (USER_DEFINED) begins with a space if the whole text does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError
from llm.data.vocabulary import CONTROL, NORMAL, Spaces, Vocabulary, sentencepiece, unigram

_LARGEST = 2**26
_UNIGRAM, _BPE = 1, 2
# Numbers of fields in the messages ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _SUFFIX, _BOS_ID = 3, 24, 41
_CHARSMAP, _SPACE_IN_FRONT, _ONE_SPACE = 2, 3, 4


def read_sentencepiece(path: Path) -> Any:
    """A `tokenizers.Tokenizer` that cuts text as the model does.

    Raises:
        RefusedError: it cannot be read, or is of a kind that has no such form.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise RefusedError(f"{size} bytes: expected at most {_LARGEST}")
        return parse_sentencepiece(path.read_bytes())
    except OSError as error:
        raise RefusedError(f"cannot be read: {error.strerror or error}") from error


def parse_sentencepiece(content: bytes) -> Any:
    """The same from a file's content."""
    tokens, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for field, value in _fields(content):
            if field == _PIECES:
                piece = dict(_fields(value))
                tokens.append(piece[_TEXT].decode())
                scores.append(struct.unpack("<f", piece[_SCORE])[0] if _SCORE in piece else 0.0)
                types.append(piece.get(_TYPE, NORMAL))
            elif field == _TRAINER:
                trainer = dict(_fields(value))
            elif field == _NORMALIZER:
                normalizer = dict(_fields(value))
        bos_id, kind = trainer.get(_BOS_ID, 1), trainer.get(_MODEL_TYPE, _UNIGRAM)
        charsmap = bytes(normalizer.get(_CHARSMAP, b""))
    except (IndexError, KeyError, ValueError, AttributeError, TypeError, struct.error) as error:
        raise RefusedError(
            "not a SentencePiece model (Llama 3's tokenizer.model is a list of ranks that does not "
            "say how to cut text; take that model's tokenizer.json)"
        ) from error
    if kind not in (_UNIGRAM, _BPE):
        raise RefusedError(f"a SentencePiece model of type {kind}: expected 1, unigrams, or 2, BPE")
    if trainer.get(_SUFFIX):
        raise RefusedError("a SentencePiece model with spaces behind words: expected them in front")
    vocabulary = Vocabulary(tokens, types, scores)
    spaces = Spaces(
        in_front=bool(normalizer.get(_SPACE_IN_FRONT, 1)),
        only_one=bool(normalizer.get(_ONE_SPACE, 1)),
        charsmap=charsmap,
    )
    known = isinstance(bos_id, int) and bos_id < len(tokens) and types[bos_id] == CONTROL
    build = sentencepiece if kind == _BPE else unigram
    return build(vocabulary, bos_id if known else None, spaces)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or the bytes of what is longer."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        match key & 7:
            case 0:
                value, place = _varint(message, place)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, place = _varint(message, place)
            case 5:
                size = 4
            case wire:
                raise ValueError(f"wire type {wire}")
        if place + size > len(message):
            raise IndexError("the message ends within a field")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than ten bytes")
