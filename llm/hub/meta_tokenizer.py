"""Meta's `tokenizer.model`: Llama 3's ranked byte sequences, or Llama 1 and 2's SentencePiece.

Llama 3: one line per token, its bytes in base64 and its rank (the format of OpenAI's tiktoken). Any
two neighbours whose concatenation is a token may be merged, the lowest rank first. 256 special
tokens follow the ranks.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer
from llm.hub.bpe_tokenizers import CONTROL, NORMAL, Vocabulary, byte_level, sentencepiece, splits

_LARGEST = 2**26
_N_SPECIAL = 256
# Ids after the last rank; all others are reserved. Llama 3.1 gave names to some of them.
_LLAMA3 = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
_LLAMA31 = _LLAMA3 | {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
_STOP_NAMES = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "</s>")
_OTHERWISE = "give data.tokenizer.path a tokenizer.json of this model instead"
_BPE = 2


def read_meta_tokenizer(path: Path, *, newer: bool) -> tuple[Tokenizer, tuple[int, ...]]:
    """The tokenizer, and the ids that end a text or a turn.

    Args:
        path: tokenizer.model.
        newer: Llama 3.1 or later, which names more of the special tokens than 3.0.

    Raises:
        RefusedError: it cannot be read, or is of another kind.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise RefusedError(f"{path.stat().st_size} bytes: expected at most {_LARGEST}")
        content = path.read_bytes()
        inner = _sentencepiece(content) if content[:1] == b"\n" else _ranked(content, newer)
        tokenizer = Tokenizer(inner)
    except OSError as error:
        raise RefusedError(
            f"{path}: cannot be read: {error.strerror or error}; {_OTHERWISE}"
        ) from error
    except RefusedError as error:
        raise RefusedError(f"{path}: {error}; {_OTHERWISE}") from error
    ids = tokenizer.special_ids
    return tokenizer, tuple(ids[name] for name in _STOP_NAMES if name in ids)


def special_names(*, newer: bool) -> list[str]:
    """Llama 3's special tokens in the order of their ids."""
    named = _LLAMA31 if newer else _LLAMA3
    names, reserved = [], 0
    for place in range(_N_SPECIAL):
        if place in named:
            names.append(named[place])
        else:
            names.append(f"<|reserved_special_token_{reserved}|>")
            reserved += 1
    return names


def _ranked(content: bytes, newer: bool) -> Any:
    chars = _char_of_byte()
    tokens: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        words = line.split()
        try:
            token = base64.b64decode(words[0], validate=True)
            rank = int(words[1])
        except (binascii.Error, ValueError, IndexError) as error:
            raise RefusedError(f"line {number}: expected a token in base64 and its rank") from error
        if rank != len(tokens) or not token:
            raise RefusedError(f"line {number}: rank {rank}, expected {len(tokens)}")
        tokens.append("".join(chars[byte] for byte in token))
    known = dict.fromkeys(tokens)
    missing = [byte for byte in range(256) if chars[byte] not in known]
    if missing:
        raise RefusedError(f"no token for the byte {missing[0]}: expected all 256")
    merges = [pair for token in tokens for pair in splits(token, known)]
    special = special_names(newer=newer)
    types = [NORMAL] * len(tokens) + [CONTROL] * len(special)
    return byte_level(Vocabulary([*tokens, *special], types), merges, "llama3", len(tokens))


def _char_of_byte() -> list[str]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _sentencepiece(content: bytes) -> Any:
    """From the protocol buffer ModelProto: 1 pieces, 2 trainer, 3 normalizer."""
    tokens, scores, types = [], [], []
    kind, space_in_front = 1, True
    try:
        for field, value in _fields(content):
            if field == 1:
                piece = dict(_fields(value))
                tokens.append(piece[1].decode())
                scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
                types.append(piece.get(3, NORMAL))
            elif field == 2:
                kind = dict(_fields(value)).get(3, 1)
            elif field == 3:
                space_in_front = bool(dict(_fields(value)).get(3, 1))
    except (IndexError, KeyError, ValueError, AttributeError, TypeError, struct.error) as error:
        raise RefusedError("neither Llama 3's format nor a SentencePiece model") from error
    if kind != _BPE:
        raise RefusedError(f"a SentencePiece model of type {kind}: expected {_BPE}, byte pairs")
    bos_id = tokens.index("<s>") if "<s>" in tokens else None
    return sentencepiece(Vocabulary(tokens, types, scores), bos_id, space_in_front=space_in_front)


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
