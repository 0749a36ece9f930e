"""Tokenizers of the kinds that are around, made from their vocabularies.

Byte-level (GPT-2, Llama 3): text is cut by a pattern, its bytes are merged by rank. SentencePiece:
spaces become ▁; characters are merged by score (Llama 1 and 2), or of all ways to cut a word into
tokens the likeliest is taken (T5); unknown characters may fall back to bytes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm.core.spec import RefusedError
from llm.data.patterns import LLAMA3, cutting_pattern

# What a token is, in the numbers that SentencePiece and GGUF share.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_WITHIN = re.compile("[^▁]▁")  # in a token
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


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
    from tokenizers import decoders, models, normalizers, pre_tokenizers

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
        pattern = cutting_pattern(LLAMA3, {"llama3": 3, "qwen2": 1}[cut])
        words = pre_tokenizers.Sequence([_cut(pattern), plain])
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer, vocabulary, bos_id)


@dataclass(frozen=True)
class Spaces:
    """What SentencePiece does to a text before it is cut."""

    in_front: bool
    """A text (and what follows a special token) begins with a space."""
    only_one: bool = False
    """Spaces at both ends are left out, and of several in a row all but one."""
    charsmap: bytes = b""
    """Its compiled table of characters that become others; empty for none."""

    def normalizer(self) -> Any:
        """As a component of the `tokenizers` library."""
        from tokenizers import Regex, normalizers

        steps: list[Any] = []
        if self.charsmap:
            steps.append(normalizers.Precompiled(self.charsmap))
        if self.only_one:
            steps.append(normalizers.Replace(Regex(r"\A +| +\z| +(?= )"), ""))
        if self.in_front:
            steps.append(normalizers.Prepend("▁"))
        spaces = normalizers.Replace(" ", "▁")
        return normalizers.Sequence([*steps, spaces]) if steps else spaces


def sentencepiece(vocabulary: Vocabulary, bos_id: int | None, spaces: Spaces) -> Any:
    """A SentencePiece-like `tokenizers.Tokenizer` that merges by score.

    Args:
        vocabulary: tokens with ▁ for spaces, perhaps `<0x00>` ... `<0xFF>` for bytes; with scores.
        bos_id: token that begins a text; None for none.
        spaces: what becomes of them.

    Raises:
        RefusedError: scores are missing, or some of the bytes.
    """
    from tokenizers import models

    ids = vocabulary.ids()
    has_bytes = _has_bytes(vocabulary)
    _check_scores(vocabulary)
    tokenizer = _model(
        models.BPE,
        vocab=ids,
        merges=merges_by_score(vocabulary),
        unk_token=_unknown(vocabulary),
        fuse_unk=True,
        byte_fallback=has_bytes,
    )
    return _spaced(tokenizer, vocabulary, bos_id, spaces, [])


def unigram(vocabulary: Vocabulary, bos_id: int | None, spaces: Spaces) -> Any:
    """A `tokenizers.Tokenizer` that takes the likeliest tokens (Kudo 2018).

    Args:
        vocabulary: tokens with ▁ for spaces, perhaps with those of bytes; scores are
            log-probabilities.
        bos_id: token that begins a text; None for none.
        spaces: what becomes of them.

    Raises:
        RefusedError: scores are missing, some of the bytes, or the unknown token.
    """
    from tokenizers import models

    _check_scores(vocabulary)
    unknown = _unknown(vocabulary)
    if unknown is None:
        raise RefusedError("the tokenizer has no unknown token: unigrams need one")
    if UNUSED in vocabulary.types:
        token = vocabulary.tokens[list(vocabulary.types).index(UNUSED)]
        raise RefusedError(f"the tokenizer's token {token!r} is marked unused: not known here")
    tokenizer = _model(
        models.Unigram,
        vocab=list(zip(vocabulary.tokens, map(float, vocabulary.scores), strict=True)),
        unk_id=list(vocabulary.tokens).index(unknown),
        byte_fallback=_has_bytes(vocabulary),
    )
    cut = _cut(_never_whole(vocabulary), "merged_with_previous")
    return _spaced(tokenizer, vocabulary, bos_id, spaces, [cut])


def _spaced(
    tokenizer: Any, vocabulary: Vocabulary, bos_id: int | None, spaces: Spaces, cuts: list[Any]
) -> Any:
    from tokenizers import decoders, pre_tokenizers

    tokenizer.normalizer = spaces.normalizer()
    if not any(_WITHIN.search(token) for token in vocabulary.tokens):
        # No token goes on after a word's end, so words can be taken one by one, which is quicker.
        cuts = [*cuts, _cut("▁+[^▁]*|[^▁]+")]
    if cuts:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spaces.in_front:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    return _finished(tokenizer, vocabulary, bos_id)


def _never_whole(vocabulary: Vocabulary) -> str:
    """Matches where a text that spells the name of a control token is cut, after its first letter.

    It does not mean that token, and SentencePiece never takes it; the library's unigrams would.
    """
    names = [
        token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in (UNKNOWN, CONTROL) and len(token) > 1
    ]
    names = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names]
    return "|".join([*names, "<(?=0x[0-9A-F]{2}>)"])


def _cut(pattern: str, behavior: str = "isolated") -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behavior)


def _check_scores(vocabulary: Vocabulary) -> None:
    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise RefusedError(
            f"the tokenizer has {len(vocabulary.tokens)} tokens and {len(vocabulary.scores)} scores"
        )
    if not all(map(math.isfinite, vocabulary.scores)):
        raise RefusedError("the tokenizer's scores: expected finite numbers")


def _has_bytes(vocabulary: Vocabulary) -> bool:
    """Whether unknown characters become bytes: there are all 256 of them, or none and `<unk>`."""
    known = set(vocabulary.tokens)
    missing = [number for number, name in enumerate(_BYTES) if name not in known]
    if missing and (len(missing) < len(_BYTES) or _unknown(vocabulary) is None):
        raise RefusedError(
            f"the tokenizer has no token for the byte {missing[0]}: expected all 256"
        )
    return not missing


def _unknown(vocabulary: Vocabulary) -> str | None:
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    return next((token for token, kind in pairs if kind == UNKNOWN), None)


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
