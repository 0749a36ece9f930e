"""The two kinds of byte-pair tokenizers that Llamas have, made from their vocabularies.

Byte-level (GPT-2, Llama 3): text is cut by a pattern, its bytes are merged by rank. SentencePiece
(Llama 1 and 2): spaces become ▁, characters are merged by score, unknown ones fall back to bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm.core.spec import RefusedError

# What a token is, in the numbers that SentencePiece and GGUF share.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and what each is."""

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    """SentencePiece only: the highest is merged first."""

    def __post_init__(self) -> None:
        most_common = Counter(self.tokens).most_common(1)
        if most_common and most_common[0][1] > 1:
            raise RefusedError(f"the tokenizer has the token {most_common[0][0]!r} twice")
        if len(self.types) != len(self.tokens):
            raise RefusedError(
                f"the tokenizer has {len(self.tokens)} tokens and {len(self.types)} types of tokens"
            )

    def ids(self) -> dict[str, int]:
        """Id of each token."""
        return {token: index for index, token in enumerate(self.tokens)}


def byte_level(
    vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], cut: str, bos_id: int | None
) -> Any:
    """A byte-level `tokenizers.Tokenizer`.

    Args:
        vocabulary: tokens in GPT-2's printable stand-ins for bytes.
        merges: pairs of tokens, the first is merged first.
        cut: how text is cut into words: `gpt2`, `smollm`, `llama3` or `qwen2`.
        bos_id: token that begins a text; None for none.

    Raises:
        RefusedError: merges that do not fit the vocabulary.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    # Llama 3: a word that is a token is that token, whether or not the merges lead to it.
    tokenizer = _model(
        models.BPE, vocab=vocabulary.ids(), merges=list(merges), ignore_merges=cut == "llama3"
    )
    words: Any
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if cut == "gpt2":
        words = gpt2
    elif cut == "smollm":
        words = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    else:
        pattern = {"llama3": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}[cut]
        isolated = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        words = pre_tokenizers.Sequence([isolated, plain])
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer, vocabulary, bos_id)


def sentencepiece(vocabulary: Vocabulary, bos_id: int | None, *, space_in_front: bool) -> Any:
    """A SentencePiece-like `tokenizers.Tokenizer`.

    Args:
        vocabulary: tokens with ▁ for spaces and `<0x00>` ... `<0xFF>` for bytes; with scores.
        bos_id: token that begins a text; None for none.
        space_in_front: whether a text (and what follows a special token) begins with a space.

    Raises:
        RefusedError: bytes or scores are missing.
    """
    from tokenizers import decoders, models, normalizers

    ids = vocabulary.ids()
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in ids]
    if missing:
        raise RefusedError(
            f"the tokenizer has no token for the byte {missing[0]}: expected all 256"
        )
    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise RefusedError(
            f"the tokenizer has {len(vocabulary.tokens)} tokens and {len(vocabulary.scores)} scores"
        )
    if not all(map(math.isfinite, vocabulary.scores)):
        raise RefusedError("the tokenizer's scores: expected finite numbers")
    unknown = [
        t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == UNKNOWN
    ]
    tokenizer = _model(
        models.BPE,
        vocab=ids,
        merges=merges_by_score(vocabulary),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    to_space = decoders.Replace("▁", " ")
    steps = [to_space, decoders.ByteFallback(), decoders.Fuse()]
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = spaces
    if space_in_front:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    return _finished(tokenizer, vocabulary, bos_id)


def merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece merges whatever pair gives the token with the highest score."""
    scores = {
        token: score
        for token, score, kind in zip(
            vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True
        )
        if kind in (NORMAL, USER_DEFINED)
    }
    by_score = sorted(scores, key=lambda token: -scores[token])
    return [pair for token in by_score for pair in splits(token, scores)]


def splits(token: str, tokens: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The ways to merge a token from two others."""
    for cut in range(1, len(token)):
        left, right = token[:cut], token[cut:]
        if left in tokens and right in tokens:
            yield left, right


def _model(kind: Any, **arguments: Any) -> Any:
    from tokenizers import Tokenizer as Inner

    try:
        return Inner(kind(**arguments))
    except Exception as error:  # the library raises bare Exception
        raise RefusedError(f"the tokenizer's merges do not fit its tokens: {error}") from error


def _finished(tokenizer: Any, vocabulary: Vocabulary, bos_id: int | None) -> Any:
    """Add special tokens, those matched whole, and the token in front of a text."""
    from tokenizers import AddedToken, processors

    added = [
        AddedToken(token, normalized=False, special=kind != USER_DEFINED)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if token and kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    if bos_id is not None:
        bos = vocabulary.tokens[bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, bos_id)]
        )
    return tokenizer
