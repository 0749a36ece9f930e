"""A tokenizer: text to ids and back, special tokens by name, and the bytes behind each token.

Wraps the Hugging Face `tokenizers` library. Text from documents is encoded as plain text: a
document that happens to contain `<|endoftext|>` does not produce that token.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from llm.core.spec import RefusedError
from llm.data.digests import digest
from llm.data.special_names import END_NAMES, START_NAMES

_FILES = ("tokenizer.json", "tokenizer.model")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Longer texts are encoded in parts: memory stays bounded, and so does the library's time on one
# "word" of millions of characters. A cut before " x" is where its patterns cut anyway.
_PART = 2**20
_CUT_WINDOW = 4096
_CUT = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


class Tokenizer:
    """Encodes and decodes; equal tokenizers have equal fingerprints.

    Args:
        inner: a `tokenizers.Tokenizer`.
        separator: name of the token between documents; None finds it by its name.

    Raises:
        RefusedError: no such separator, or none found.
    """

    def __init__(self, inner: Any, separator: str | None = None) -> None:
        inner.no_truncation()  # tokenizer.json files carry both settings now and then
        inner.no_padding()
        self._inner = inner
        added = inner.get_added_tokens_decoder()
        self.special_ids: dict[str, int] = {
            token.content: index for index, token in sorted(added.items()) if token.special
        }
        self._added: dict[int, str] = {index: token.content for index, token in added.items()}
        self._vocab: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(self._vocab.values()) + 1
        self.separator: str = self._find_separator(separator)
        self.separator_id: int = self.special_ids[self.separator]
        self.start_id: int = self._find_start()

    @classmethod
    def load(cls, path: str, separator: str | None = None) -> Tokenizer:
        """From a tokenizer.json, a SentencePiece .model, a folder with one, or `hf:org/name`.

        Without a separator it is the one that tokenizer_config.json says beside it, the one known
        by its name, or else the end of a text that tokenizer_config.json says.

        Raises:
            RefusedError: there is none, or it cannot be read.
        """
        place = _fetch(path) if path.startswith("hf:") else Path(path).expanduser()
        file = next((place / name for name in _FILES if (place / name).is_file()), place)
        if not file.is_file():
            raise RefusedError(
                f"path={path}: no {' or '.join(_FILES)} there; expected such a file, a folder with "
                "one, for instance a run's, or hf:org/name"
            )
        beside = _json_object(file.with_name("tokenizer_config.json"))
        try:
            inner = _read(file)
            try:
                return cls(inner, separator or beside.get("separator"))
            except RefusedError:
                end = beside.get("eos_token")
                end = end.get("content") if isinstance(end, dict) else end
                if separator is not None or not isinstance(end, str) or not end:
                    raise
                return cls(inner, end)
        except RefusedError as error:
            raise RefusedError(f"path={path}: {error}") from error
        except Exception as error:  # the library raises bare Exception
            raise RefusedError(f"path={path}: not a readable tokenizer: {error}") from error

    def with_special_tokens(self, names: Sequence[str]) -> Tokenizer:
        """This tokenizer, or one that has these special tokens as well, with the next free ids."""
        from tokenizers import AddedToken

        missing = [name for name in names if name not in self.special_ids]
        if not missing:
            return self
        larger = Tokenizer.from_json(self.to_json())
        larger._inner.add_special_tokens([AddedToken(name, special=True) for name in missing])
        return Tokenizer(larger._inner, self.separator)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """From what `to_json` wrote."""
        from tokenizers import Tokenizer as Inner

        data = json.loads(text)
        return cls(Inner.from_str(json.dumps(data["tokenizer"])), data["separator"])

    def to_json(self) -> str:
        """All of it as text: the tokenizer.json and the name of the separator."""
        inner = json.loads(self._inner.to_str())
        return json.dumps({"separator": self.separator, "tokenizer": inner}, ensure_ascii=False)

    def to_hf_json(self) -> str:
        """The plain tokenizer.json that other programs read."""
        return str(self._inner.to_str(pretty=True))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the tokenizer: 20 hexadecimal digits."""
        return digest(json.loads(self.to_json()))

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Ids of a text; nothing is added.

        Args:
            text: any Unicode text.
            specials: whether names of special tokens in the text mean those tokens (as in a chat
                template's output) or are plain text (as in a document).
        """
        parts = [text] if specials else split_long(text)
        batch = self.encode_batch(parts, specials)
        return batch[0] if len(batch) == 1 else [index for ids in batch for index in ids]

    def encode_batch(self, texts: Sequence[str], specials: bool = False) -> list[list[int]]:
        """`encode` for many texts at once, on all cores."""
        self._inner.encode_special_tokens = not specials
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_spans(
        self, text: str, specials: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and the characters [start, stop) of the text that each token stands for.

        Tokens that share the bytes of one character each have it in their span.
        """
        self._inner.encode_special_tokens = not specials
        encoding = self._inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int], skip_specials: bool = True) -> str:
        """Text of some ids; those of no token are left out, broken UTF-8 becomes U+FFFD."""
        return str(self._inner.decode([int(i) for i in ids], skip_special_tokens=skip_specials))

    def decode_stream(self, skip_specials: bool = True) -> DecodeStream:
        """For text that appears token by token."""
        return DecodeStream(self, skip_specials)

    @functools.cached_property
    def adds_start(self) -> bool:
        """Whether its own recipe puts the start token before a text (`encode` adds nothing)."""
        self._inner.encode_special_tokens = False
        return bool(self._inner.encode("", add_special_tokens=True).ids[:1] == [self.start_id])

    @functools.cached_property
    def is_byte_level(self) -> bool:
        """Whether every token is a sequence of bytes, so that any text is encoded exactly."""
        return "ByteLevel" in _kinds(json.loads(self._inner.to_str()).get("decoder"))

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for characters without one; None if there is no such."""
        model = json.loads(self._inner.to_str())["model"]
        if isinstance(model.get("unk_id"), int):
            return int(model["unk_id"])
        return self._vocab.get(model.get("unk_token") or "")

    @functools.cached_property
    def pieces(self) -> list[bytes | None]:
        """Bytes of each token, by id; b'' for a special token, None for an id without a token."""
        pieces: list[bytes | None] = [None] * self.vocab_size
        for text, index in self._vocab.items():
            pieces[index] = self._piece(text, index)
        return pieces

    def _piece(self, text: str, index: int) -> bytes:
        if index in self._added:
            return b"" if text in self.special_ids else text.encode()
        if self.is_byte_level:
            table = _byte_of_char()
            return bytes(table[char] for char in text if char in table)
        if match := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(match[1], 16)])
        return text.replace("▁", " ").encode()

    @functools.cached_property
    def token_bytes(self) -> Int32[np.ndarray, "vocab"]:
        """How many bytes of text each token stands for; 0 for special tokens.

        Exact for byte-level tokenizers: the sum over a text's tokens is `len(text.encode())`.
        SentencePiece-like ones may put a space in front of a text, which counts as one byte.
        """
        return np.array([len(piece or b"") for piece in self.pieces], np.int32)

    def _find_separator(self, wanted: str | None) -> str:
        names = self.special_ids
        if wanted is not None:
            if wanted in names:
                return wanted
            problem = f"separator={wanted}: no such special token"
        else:
            for name in END_NAMES:
                if name in names:
                    return name
            problem = "separator: this tokenizer has no token known to end a text; name one"
        raise RefusedError(f"{problem} (it has {', '.join(names) or 'no special tokens'})")

    def _find_start(self) -> int:
        """The token in front of a document: the tokenizer's BOS, or else the separator."""
        self._inner.encode_special_tokens = False
        template = self._inner.encode("", add_special_tokens=True).ids
        if template and template[0] in self.special_ids.values():
            return int(template[0])
        for name in START_NAMES:
            if name in self.special_ids:
                return self.special_ids[name]
        return self.separator_id


def has_tokenizer(path: Path) -> bool:
    """Whether it is a file of a tokenizer, or a folder with one."""
    if path.is_file():
        return path.suffix in {Path(name).suffix for name in _FILES}
    return any((path / name).is_file() for name in _FILES)


def _read(file: Path) -> Any:
    """A `tokenizers.Tokenizer` from either kind of file."""
    from tokenizers import Tokenizer as Inner

    if file.suffix == ".model":
        from llm.data.sentencepiece_model import read_sentencepiece

        return read_sentencepiece(file)
    return Inner.from_file(str(file))


def _fetch(source: str) -> Path:
    """The folder in the hub's cache with the files of the tokenizer that `hf:...` names."""
    from huggingface_hub import snapshot_download

    name, _, revision = source.removeprefix("hf:").partition("@")
    files = [*_FILES, "tokenizer_config.json"]
    try:
        return Path(snapshot_download(name, revision=revision or "main", allow_patterns=files))
    except Exception as error:  # of many kinds: of the hub, of the network, of the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RefusedError(f"path={source}: {reason}") from error


def _json_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty if it is not there or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


class DecodeStream:
    """Turns ids into text as they come, never showing half a character."""

    def __init__(self, tokenizer: Tokenizer, skip_specials: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_specials = skip_specials
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._read = 0

    def push(self, index: int) -> str:
        """The text that this id completes; '' while a character is still incomplete."""
        tokenizer = self._tokenizer
        if not tokenizer.is_byte_level:
            return self._push_whole(index)
        name = tokenizer._added.get(index)
        if name in tokenizer.special_ids:
            # A special token ends whatever came before it.
            return self.flush() + ("" if self._skip_specials else str(name))
        piece = tokenizer.pieces[index] if 0 <= index < tokenizer.vocab_size else None
        return self._decoder.decode(piece or b"")

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        if self._tokenizer.is_byte_level:
            rest = self._decoder.decode(b"", final=True)
            self._decoder.reset()
            return rest
        rest, self._ids, self._read = self._new_text(), [], 0
        return rest

    def _push_whole(self, index: int) -> str:
        """Without bytes to go by: decode with the tokens before it, and show what is new."""
        self._ids.append(index)
        new = self._new_text()
        if not new or new.endswith("\ufffd"):
            return ""
        self._ids, self._read = self._ids[self._read :], len(self._ids) - self._read
        return new

    def _new_text(self) -> str:
        """What the ids after the first `_read`, already shown, add to their text."""
        shown = self._tokenizer.decode(self._ids[: self._read], self._skip_specials)
        return self._tokenizer.decode(self._ids, self._skip_specials)[len(shown) :]


def split_long(text: str) -> list[str]:
    """A text in parts of at most 2^20 characters, cut between words where there are any."""
    parts, start = [], 0
    while len(text) - start > _PART:
        stop = start + _PART
        window = text[stop - _CUT_WINDOW : stop + 1]
        cuts = [match.start() for match in _CUT.finditer(window)]
        if cuts:
            stop += cuts[-1] - _CUT_WINDOW
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]]


def _kinds(component: Any) -> set[str]:
    """The `type` names in a tokenizer.json component, nested ones included."""
    if isinstance(component, dict):
        inner = set().union(*(_kinds(value) for value in component.values()))
        return inner | {str(component["type"])} if "type" in component else inner
    if isinstance(component, list):
        return set().union(*(_kinds(item) for item in component))
    return set()


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}
