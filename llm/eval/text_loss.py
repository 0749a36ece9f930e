"""Loss, perplexity and bits per byte of documents.

Bits per byte are all nats over all bytes of the text in UTF-8, so they compare models with any
tokenizers. The bytes are the documents' own (what a tokenizer makes of them does not matter), of
conversations those that the scored tokens stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm.core.spec import RefusedError
from llm.data.conversations import ChatSettings, Conversations
from llm.data.formats import Format, PlainText
from llm.data.order import permutation
from llm.data.sources import open_source
from llm.data.specs import DocumentsSpec
from llm.data.split import Spans, tokenise_and_split
from llm.data.token_cache import TokenCache
from llm.data.tokenizer import Tokenizer
from llm.eval.intervals import bootstrap
from llm.eval.scorer import Query, Scorer
from llm.eval.windows import windows

_SAMPLE = 6  # purpose of a permutation, next to those in `llm.data`
_GROUP_TOKENS = 2**18  # documents are read and scored together up to so many tokens


@dataclass(frozen=True)
class Corpus:
    """Documents as tokens."""

    name: str
    """Of the source; of another source with that name too, it ends in ` #2` and so on."""
    cache: TokenCache
    spans: Spans
    """Each a whole document."""
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.spans.start)


class Document(NamedTuple):
    """One to be scored."""

    corpus: str
    number: int
    """In the source."""
    ids: np.ndarray
    """The first is given, the others may count."""
    counts: np.ndarray
    """bool [len(ids) - 1]: which of the others do."""
    bytes: int
    """That those stand for."""


def read_corpora(
    sources: Sequence[DocumentsSpec],
    tokenizer: Tokenizer,
    *,
    split: str,
    eval_fraction: float,
    cache_dir: Path,
    chat: ChatSettings | None = None,
) -> list[Corpus]:
    """Open and tokenise the sources.

    Args:
        sources: where documents come from.
        tokenizer: of the model.
        split: `held_out` or `train`, as a run with this `eval_fraction` splits them, or `all`.
        eval_fraction: see `llm.data.split`.
        cache_dir: for what is tokenised.
        chat: how conversations are read; None: documents are plain text.

    Raises:
        RefusedError: a source cannot be read.
    """
    opened = []
    for one in sources:
        format: Format = (
            PlainText(one.text_field) if chat is None else Conversations(chat, one.text_field)
        )
        opened.append(open_source(one, cache_dir, format))
    fraction = 0 if split == "all" else eval_fraction
    caches, parts = tokenise_and_split(opened, tokenizer, cache_dir, fraction)
    spans = parts.held_out if split == "held_out" else parts.train
    names = _distinct([cache.meta["source"] for cache in caches])
    if not any(len(span.start) for span in spans):
        raise RefusedError(
            f"split={split}: no document of {', '.join(names)} is held out with "
            f"eval_fraction={eval_fraction}; split=all takes every document"
        )
    return [
        Corpus(name, cache, span, tokenizer)
        for name, cache, span in zip(names, caches, spans, strict=True)
        if len(span.start)
    ]


def _distinct(names: Sequence[str]) -> list[str]:
    earlier = [names[:nth].count(name) for nth, name in enumerate(names)]
    return [f"{name} #{n + 1}" if n else name for name, n in zip(names, earlier, strict=True)]


def documents(corpus: Corpus, *, ends: bool = True, limit: int | None = None) -> Iterator[Document]:
    """The documents of a corpus in their order, or a sample of them, the same one each time.

    Args:
        corpus: where they are.
        ends: of plain text, the token that ends a document counts too.
        limit: at most so many.
    """
    cache, spans = corpus.cache, corpus.spans
    offsets, token_bytes = np.asarray(cache.offsets), corpus.tokenizer.token_bytes
    order: Sequence[int] = range(len(corpus))
    if limit is not None and limit < len(corpus):
        sample = permutation(len(corpus), _SAMPLE)
        order = sorted(int(place) for _, place in zip(range(limit), sample, strict=False))
    for place in order:
        start, length = int(spans.start[place]), int(spans.length[place])
        number = int(np.searchsorted(offsets, start, side="right")) - 1
        stop = start + length + 1
        ids = np.asarray(cache.tokens[start:stop], np.int32)
        if cache.trained is None:
            counts = np.ones(length, bool)
            counts[-1] = ends
            size = int(cache.bytes[number])
        else:
            counts = np.asarray(cache.trained[start + 1 : stop])
            size = int(token_bytes[ids[1:][counts]].sum())
        if counts.any():
            yield Document(corpus.name, number, ids, counts, size)


@dataclass(frozen=True)
class TextLoss:
    """What a model makes of some documents."""

    nats: np.ndarray
    """float64 [D], of each document."""
    tokens: np.ndarray
    bytes: np.ndarray

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """NaN if nothing that counts is text."""
        size = float(self.bytes.sum())
        return float(self.nats.sum()) / math.log(2) / size if size else math.nan

    def to_json(self) -> dict[str, Any]:
        """Figures and their intervals, as result.json has them; NaN has no interval."""
        parts = np.stack([self.nats, self.tokens, self.bytes], axis=1).astype(np.float64)
        loss = bits = None
        finite = math.isfinite(self.loss)
        if finite:
            loss = bootstrap([parts], lambda means: means[0][0] / means[0][1])
            bits = bootstrap(
                [parts], lambda means: means[0][0] / math.log(2) / max(means[0][2], 1e-9)
            )
        return {
            "loss": self.loss,
            "loss_95": loss,
            "perplexity": math.exp(min(self.loss, 700)) if finite else math.nan,
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_95": bits,
            "documents": len(self.nats),
            "tokens": int(self.tokens.sum()),
            "bytes": int(self.bytes.sum()),
        }


Sink = Callable[[Document, np.ndarray], None]
"""Is given each document with the log-probability of every token but the first."""


def text_loss(
    scorer: Scorer,
    texts: Iterator[Document],
    *,
    stride: int,
    sink: Sink | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> TextLoss:
    """Score documents, each alone.

    Args:
        scorer: of the model; its `context` is the windows' length.
        texts: to score; read a part at a time.
        stride: see `llm.eval.windows`.
        sink: wants every token.
        progress: is told how many tokens were scored, now and then.
    """
    sums: list[tuple[float, int, int]] = []
    for group in _groups(texts):
        queries: list[Query] = []
        ends = []
        for document in group:
            queries += windows(document.ids.tolist(), scorer.context, stride)
            ends.append(len(queries))
        scores = scorer(queries)
        for document, first, last in zip(group, [0, *ends], ends, strict=False):
            log_probs = np.concatenate([one.log_probs for (one,) in scores[first:last]])
            counted = log_probs[document.counts].astype(np.float64)
            sums.append((-math.fsum(counted), len(counted), document.bytes))
            if sink is not None:
                sink(document, log_probs)
        progress(sum(len(document.ids) - 1 for document in group))
    nats, tokens, size = (np.array(column) for column in zip(*sums, strict=True))
    return TextLoss(nats, tokens, size)


def merged(losses: Sequence[TextLoss]) -> TextLoss:
    """Of all documents together."""
    columns = (
        np.concatenate([getattr(one, name) for one in losses])
        for name in ("nats", "tokens", "bytes")
    )
    return TextLoss(*columns)


def _groups(texts: Iterator[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for document in texts:
        group.append(document)
        size += len(document.ids)
        if size >= _GROUP_TOKENS:
            yield group
            group, size = [], 0
    if group:
        yield group
