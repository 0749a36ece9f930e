"""How well a tokenizer suits a text: how short it makes it, how whole its words, what it loses."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm.data.tokenizer import Tokenizer, split_long
from llm.data.unicode_stress import STRESS

_WORD = re.compile(r"\S+")
_ALPHA = 2.5  # order of the entropy; the one that Zouhar et al. found to tell most


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What was measured of one tokenizer."""

    vocab_size: int
    tokens: int
    """Of all texts, without those around a document."""
    bytes: int
    """Of all texts in UTF-8."""
    words: int
    """Stretches between white space."""
    bytes_per_token: float
    bytes_per_token_by_source: Mapping[str, float]
    fertility: float
    """Tokens that hold some of a word, mean over words (Rust et al. 2021)."""
    whole_words: float
    """Share of the words that lie in one token."""
    vocabulary_used: float
    """Share of the vocabulary that occurs in the texts."""
    renyi_efficiency: float
    """Entropy of order 2.5 of the tokens' frequencies in parts of the largest that the vocabulary
    allows (Zouhar et al. 2023): high if neither rare nor very frequent tokens abound."""
    unknown: int
    """Tokens that stand for what the tokenizer has no token for."""
    texts_changed: float
    """Share of the texts that do not come back as they went in."""
    megabytes_per_second: float
    """Of encoding, on this machine, with all of its cores."""
    stress_lost: tuple[str, ...]
    """Those of `STRESS` that do not come back as they went in."""

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "stress_lost": list(self.stress_lost), "stress_texts": len(STRESS)}


def measure(tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> Quality:
    """Encode some texts, and the stress texts, and decode them.

    Args:
        tokenizer: the one to measure.
        texts: of each source; at least one word in all.
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    by_source: dict[str, float] = {}
    sizes: list[int] = []
    n_texts, n_bytes, changed, seconds = 0, 0, 0, 0.0
    for source, documents in texts.items():
        before, source_bytes = int(counts.sum()), 0
        parts = [split_long(text) for text in documents]
        started = time.perf_counter()
        encoded = iter(tokenizer.encode_batch([part for of_one in parts for part in of_one]))
        seconds += time.perf_counter() - started
        for text, of_one in zip(documents, parts, strict=True):
            ids = [i for _ in of_one for i in next(encoded)]
            changed += tokenizer.decode(ids) != text
            counts += np.bincount(np.array(ids, np.int64), minlength=len(counts))
            sizes += tokens_per_word(tokenizer, text)
            source_bytes += len(text.encode())
        by_source[source] = source_bytes / max(1, int(counts.sum()) - before)
        n_texts += len(documents)
        n_bytes += source_bytes
    total, unknown = int(counts.sum()), tokenizer.unknown_id
    return Quality(
        vocab_size=tokenizer.vocab_size,
        tokens=total,
        bytes=n_bytes,
        words=len(sizes),
        bytes_per_token=n_bytes / total,
        bytes_per_token_by_source=by_source,
        fertility=float(np.mean(sizes)),
        whole_words=sizes.count(1) / len(sizes),
        vocabulary_used=np.count_nonzero(counts) / sum(p is not None for p in tokenizer.pieces),
        renyi_efficiency=renyi_efficiency(counts),
        unknown=0 if unknown is None else int(counts[unknown]),
        texts_changed=changed / n_texts,
        megabytes_per_second=n_bytes / 1e6 / seconds,
        stress_lost=tuple(
            n for n, t in STRESS.items() if tokenizer.decode(tokenizer.encode(t)) != t
        ),
    )


def tokens_per_word(tokenizer: Tokenizer, text: str) -> list[int]:
    """For each word (a stretch between white space) how many tokens hold some of it."""
    sizes: list[int] = []
    for part in split_long(text):
        words = np.array([match.span() for match in _WORD.finditer(part)]).reshape(-1, 2)
        spans = np.array(tokenizer.encode_with_spans(part)[1]).reshape(-1, 2)
        # Tokens begin and end in the order of the text: count those that begin before a word's
        # end, without those that end before its start.
        before_end = np.searchsorted(spans[:, 0], words[:, 1], "left")
        before_start = np.searchsorted(spans[:, 1], words[:, 0], "right")
        sizes += (before_end - before_start).tolist()
    return sizes


def renyi_efficiency(counts: np.ndarray) -> float:
    """Entropy of order 2.5 of how often each token occurs, in parts of the uniform's.

    Args:
        counts: int [V], of which some are not zero.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(np.log(np.sum(shares**_ALPHA)) / (1 - _ALPHA) / np.log(len(counts)))
