"""The tokenizer in a GGUF file's metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loguru import logger

from llm.core.spec import RefusedError
from llm.data.patterns import GPT2, LLAMA3, cutting_pattern
from llm.data.tokenizer import Tokenizer
from llm.data.vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Spaces,
    Vocabulary,
    byte_level,
    sentencepiece,
)

# llama.cpp's names for the ways to cut text into words -> ours.
_CUTS = {
    "gpt-2": "gpt2",
    "default": "gpt2",
    "smollm": "smollm",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "qwen2": "qwen2",
}
# Patterns -> llama.cpp's names.
_PATTERNS = {
    cutting_pattern(GPT2): "gpt-2",
    cutting_pattern(LLAMA3): "llama-bpe",
    cutting_pattern(LLAMA3, 1): "qwen2",
}
# Files name one token that ends a text; chat models end their turns with others as well.
_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_STOP_NAMES = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>")
_OTHERWISE = "give data.tokenizer.path a tokenizer.json of this model instead"


@dataclass(frozen=True)
class GGUFTokenizer:
    """What a file says about text."""

    tokenizer: Tokenizer
    chat_template: str | None
    stop_ids: tuple[int, ...]


def read_tokenizer(metadata: dict[str, Any], n_rows: int) -> GGUFTokenizer:
    """Build the tokenizer.

    Args:
        metadata: of the file, see `llm.hub.gguf_header.Header`.
        n_rows: rows of the embedding; the tokenizer may not have more tokens.

    Raises:
        RefusedError: there is none, it is of an unknown kind, or it contradicts itself.
    """
    kind = metadata.get("tokenizer.ggml.model")
    vocabulary = _vocabulary(metadata, n_rows)
    if kind == "gpt2":
        inner = _byte_level(metadata, vocabulary)
    elif kind == "llama":
        space = metadata.get("tokenizer.ggml.add_space_prefix", True) is True
        bos_id = _bos_id(metadata, vocabulary, default=True)
        inner = sentencepiece(vocabulary, bos_id, Spaces(in_front=space))
    else:
        raise RefusedError(f"tokenizer.ggml.model={kind}: expected gpt2 or llama; {_OTHERWISE}")
    template = metadata.get("tokenizer.chat_template")
    return GGUFTokenizer(
        _named_end(inner, metadata, vocabulary),
        template if isinstance(template, str) else None,
        _stop_ids(metadata, vocabulary),
    )


def tokenizer_metadata(tokenizer: Tokenizer, end_ids: Sequence[int], n_rows: int) -> dict[str, Any]:
    """What a file says about a tokenizer, for `read_tokenizer` and for llama.cpp.

    Args:
        tokenizer: a byte-level one.
        end_ids: tokens that end what a model says, the usual one first.
        n_rows: rows of the embedding; those without a token are marked unused.

    Raises:
        RefusedError: llama.cpp has no tokenizer of this kind.
    """
    data = json.loads(tokenizer.to_hf_json())
    model = data["model"]
    if model["type"] != "BPE" or not tokenizer.is_byte_level:
        raise RefusedError(
            "gguf: only byte-level tokenizers can be written; leave gguf out, and give the folder "
            "to llama.cpp's convert_hf_to_gguf.py"
        )
    tokens = [f"[PAD{index}]" for index in range(n_rows)]
    types = [UNUSED] * n_rows
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in data["added_tokens"]:
        index = added["id"]
        tokens[index], types[index] = (
            added["content"],
            CONTROL if added["special"] else USER_DEFINED,
        )
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    found = {
        "model": "gpt2",
        "pre": _cut_name(data["pre_tokenizer"]),
        "tokens": tokens,
        "token_type": types,
        "merges": [" ".join(pair) for pair in pairs],
        "bos_token_id": tokenizer.start_id,
        "eos_token_id": end_ids[0],
        "add_bos_token": tokenizer.adds_start,
    }
    if len(end_ids) > 1:
        found["eot_token_id"] = end_ids[1]
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def _cut_name(pre_tokenizer: Any) -> str:
    """llama.cpp's name for the way in which a tokenizer cuts text into words."""
    steps = pre_tokenizer or {}
    steps = steps.get("pretokenizers", [steps])
    match [step.get("type") for step in steps]:
        case ["ByteLevel"] if _whole(steps[0]):
            return "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0]["individual_digits"] and _whole(steps[1]):
            return "smollm"
        case ["Split", "ByteLevel"] if not steps[1]["use_regex"]:
            name = _PATTERNS.get(steps[0]["pattern"].get("Regex"))
            if name and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
                return name
    raise RefusedError(
        "gguf: llama.cpp does not know how this tokenizer cuts text into words. It knows those "
        "trained with data.tokenizer.pattern=gpt2, or llama3 with max_digits=1 or 3"
    )


def _whole(byte_level: dict[str, Any]) -> bool:
    """Whether this step cuts by GPT-2's pattern and adds nothing."""
    return bool(byte_level["use_regex"]) and not byte_level["add_prefix_space"]


def _vocabulary(metadata: dict[str, Any], n_rows: int) -> Vocabulary:
    tokens = _list(metadata, "tokens", str)
    if not 0 < len(tokens) <= n_rows:
        raise RefusedError(
            f"tokenizer.ggml.tokens has {len(tokens)} tokens: expected 1 to {n_rows}, the rows of "
            "the embedding"
        )
    types = _list(metadata, "token_type", int) or [1] * len(tokens)
    return Vocabulary(tokens, types, _list(metadata, "scores", float))


def _byte_level(metadata: dict[str, Any], vocabulary: Vocabulary) -> Any:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _CUTS:
        raise RefusedError(
            f"tokenizer.ggml.pre={name}: expected one of {', '.join(_CUTS)}; {_OTHERWISE}"
        )
    if name == "default":
        logger.warning(
            "tokenizer.ggml.pre=default: the file does not say how its tokenizer cuts text into "
            "words; GPT-2's way is taken"
        )
    merges = []
    for merge in _list(metadata, "merges", str):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise RefusedError(f"tokenizer.ggml.merges: {merge!r} is not a pair of tokens")
        merges.append((left, right))
    cut = _CUTS[name]
    # llama.cpp puts BOS in front with Llama 3 unless the file says otherwise.
    return byte_level(
        vocabulary, merges, cut, _bos_id(metadata, vocabulary, default=cut == "llama3")
    )


def _bos_id(metadata: dict[str, Any], vocabulary: Vocabulary, *, default: bool) -> int | None:
    """The token that begins a text, if one does."""
    if metadata.get("tokenizer.ggml.add_bos_token", default) is not True:
        return None
    return _token_id(metadata, "bos_token_id", vocabulary)


def _stop_ids(metadata: dict[str, Any], vocabulary: Vocabulary) -> tuple[int, ...]:
    ids = [_token_id(metadata, key, vocabulary) for key in _STOP_KEYS]
    specials = {
        token: index
        for index, token in enumerate(vocabulary.tokens)
        if vocabulary.types[index] == CONTROL
    }
    ids += [specials.get(name) for name in _STOP_NAMES]
    return tuple(dict.fromkeys(index for index in ids if index is not None))


def _named_end(inner: Any, metadata: dict[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    """With the separator by its name, as everywhere; or else the file's end of a text."""
    try:
        return Tokenizer(inner)
    except RefusedError:
        eos_id = _token_id(metadata, "eos_token_id", vocabulary)
        if eos_id is None:
            raise
        return Tokenizer(inner, vocabulary.tokens[eos_id])


def _token_id(metadata: dict[str, Any], key: str, vocabulary: Vocabulary) -> int | None:
    index = metadata.get(f"tokenizer.ggml.{key}")
    if index is None or (key != "eos_token_id" and index in (-1, 2**32 - 1)):
        return None
    n_tokens = len(vocabulary.tokens)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_tokens:
        raise RefusedError(f"tokenizer.ggml.{key}={index}: expected 0 to {n_tokens - 1}")
    return index


def _list(metadata: dict[str, Any], key: str, kind: type) -> list[Any]:
    """A list from the metadata; [] if there is none."""
    values = metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise RefusedError(f"tokenizer.ggml.{key}: expected a list of {kind.__name__}")
    return values
