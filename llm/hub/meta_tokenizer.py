"""Meta's `tokenizer.model`: Llama 3's ranked byte sequences, or Llama 1 and 2's SentencePiece.

Llama 3: one line per token, its bytes in base64 and its rank (the format of OpenAI's tiktoken). Any
two neighbours whose concatenation is a token may be merged, the lowest rank first. 256 special
tokens follow the ranks.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError
from llm.data.sentencepiece_model import parse_sentencepiece
from llm.data.tokenizer import Tokenizer
from llm.data.vocabulary import CONTROL, NORMAL, Vocabulary, byte_level, splits

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
        inner = parse_sentencepiece(content) if content[:1] == b"\n" else _ranked(content, newer)
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
