"""From a spec to batches: open the sources, tokenise, split, plan the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from llm.core.spec import RefusedError
from llm.data.batches import (
    Batch,
    Batches,
    Bucket,
    EvalBatches,
    PackedBatches,
    PaddedBatches,
    Shard,
)
from llm.data.bpe import build_tokenizer
from llm.data.conversations import ChatSettings, Conversations
from llm.data.fitting import fit, trained_targets
from llm.data.formats import Format, PlainText
from llm.data.loader import Loader
from llm.data.order import RowStream
from llm.data.packing import pack
from llm.data.padding import one_per_row
from llm.data.questions import Question, questions
from llm.data.rows import Rows
from llm.data.sources import open_source
from llm.data.specs import DataSpec, PackedSpec
from llm.data.split import Spans, Split, tokenise_and_split
from llm.data.token_cache import TokenCache
from llm.data.tokenizer import Tokenizer


class Data:
    """Everything a run reads.

    Attributes:
        spec: what it was built from.
        tokenizer: the one in use.
        fingerprint: JSON data for the run's folder: what was read, and how much.
        row_lengths: every T that a batch may have, ascending.
    """

    def __init__(
        self,
        spec: DataSpec,
        tokenizer: Tokenizer,
        train: Batches,
        held_out: EvalBatches,
        fingerprint: dict[str, Any],
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.row_lengths = spec.row_lengths()
        self._train = train
        self._held_out = held_out

    def batch(self, index: int) -> Batch:
        """Training batch `index`, made on the spot: the one that `batches()` yields as such."""
        return self._train.batch(index)

    def batches(self) -> Loader:
        """An endless loader over the training batches, from the first one on."""
        return Loader(self._train, self.spec.workers)

    @property
    def n_eval_batches(self) -> int:
        """How many batches the held-out rows make; 0 if nothing is held out."""
        return len(self._held_out)

    def eval_batches(self, limit: int | None = None) -> Iterator[tuple[int, Batch]]:
        """The held-out rows once, in the same form and order each time.

        Args:
            limit: at most so many batches; they are a random sample of all.

        Yields:
            The number of a source, and a batch of its rows.
        """
        return self._held_out.take(limit)

    def examples(self, limit: int) -> list[list[tuple[str, bool]]]:
        """The first documents of the first training batches, token by token.

        Args:
            limit: how many.

        Returns:
            Of each document the text of each token, and whether it is trained.
        """
        found: list[list[tuple[str, bool]]] = []
        for index in range(limit):
            batch = self.batch(index)
            here = np.flatnonzero(batch["segment_ids"][0] == 1)
            ids = [*batch["tokens"][0, here[:1]], *batch["targets"][0, here]]
            trained = [False, *(batch["loss_mask"][0, here] > 0)]
            texts = (self.tokenizer.decode([token], skip_specials=False) for token in ids)
            found.append(list(zip(texts, map(bool, trained), strict=True)))
        return found

    @property
    def source_names(self) -> list[str]:
        """What to call each source; no name twice."""
        names = [source["name"].rpartition("/")[2] for source in self.fingerprint["sources"]]
        return [name if names.count(name) == 1 else f"{name}#{n}" for n, name in enumerate(names)]

    def questions(self, limit: int) -> list[Question]:
        """Held-out prompts with the answers they got; none where everything is trained.

        Args:
            limit: at most so many; the same ones each time.
        """
        return questions(self._held_out.plans, limit)

    def describe(self) -> str:
        """One line for people."""
        train, held_out = self.fingerprint["train"], self.fingerprint["eval"]
        names = " + ".join(source["name"] for source in self.fingerprint["sources"])
        return (
            f"{self.spec.name} rows from {names}: {train['documents']:,} documents, "
            f"{train['tokens']:,} tokens{self._trained_share()} in {train['rows']:,} rows of up to "
            f"{self.spec.seq_len} ({train['padding']:.2%} padding); held out "
            f"{held_out['documents']:,} documents, {held_out['tokens']:,} tokens; "
            f"vocabulary of {self.tokenizer.vocab_size:,}"
        )

    def _trained_share(self) -> str:
        train = self.fingerprint["train"]
        share = train["trained"] / train["tokens"]
        return "" if share == 1 else f" ({share:.0%} of them trained)"


def build_data(
    spec: DataSpec,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    tokenizer: Tokenizer | None = None,
    chat: ChatSettings | None = None,
) -> Data:
    """See `DataSpec.build`."""
    if seed < 0:
        raise RefusedError(f"seed={seed}: expected a number that is not negative")
    if spec.batch_size % shard_count:
        raise RefusedError(f"batch_size={spec.batch_size}: {shard_count} hosts cannot share it")
    cache_dir = Path(spec.cache_dir).expanduser()
    formats: list[Format] = [
        PlainText(member.text_field) if chat is None else Conversations(chat, member.text_field)
        for member in spec.sources
    ]
    sources = [
        open_source(member, cache_dir, format)
        for member, format in zip(spec.sources, formats, strict=True)
    ]
    weights = [member.weight for member in spec.sources]
    tokenizer = tokenizer or build_tokenizer(spec.tokenizer, sources, weights, cache_dir)
    if chat is not None:
        tokenizer = tokenizer.with_special_tokens(chat.new_tokens)
    caches, split = tokenise_and_split(sources, tokenizer, cache_dir, spec.eval_fraction)
    unfit: list[dict[str, int]] = [{} for _ in caches]
    if chat is not None:
        split, unfit = _fit_rows(spec, chat, caches, split)
    train = _plan(spec, caches, split.train)
    held_out = _plan(spec, caches, split.held_out)
    shard = Shard.of(spec.batch_size, shard_index, shard_count)
    stream = RowStream([len(rows) for rows in train], weights, seed)
    buckets = [Bucket(n, shard.times(spec.more_rows(n))) for n in spec.row_lengths()]
    batches: Batches
    if isinstance(spec, PackedSpec):
        batches = PackedBatches(train, stream, shard, spec.seq_len)
    else:
        batches = PaddedBatches(train, stream, buckets, seed)
    counts = {
        "train": _count(train, split.train, spec.seq_len),
        "eval": _count(held_out, split.held_out, spec.seq_len),
    }
    sources_read = [
        {
            "name": cache.meta["source"],
            "cache": cache.fingerprint,
            "weight": weight,
            **{key: cache.meta[key] for key in ("documents", "tokens", "bytes", "skipped")},
            **why,
        }
        for cache, weight, why in zip(caches, weights, unfit, strict=True)
    ]
    fingerprint = {"tokenizer": tokenizer.fingerprint, "sources": sources_read, **counts}
    data = Data(spec, tokenizer, batches, EvalBatches(held_out, buckets), fingerprint)
    logger.info("data: {}", data.describe())
    if spec.eval_fraction and counts["eval"]["trained"] < spec.batch_size * spec.seq_len // 8:
        logger.warning(
            "Only {:,} tokens are held out, a small part of a batch: eval/loss will be rough "
            "(data.eval_fraction={}).", counts["eval"]["trained"], spec.eval_fraction,
        )  # fmt: skip
    return data


def _fit_rows(
    spec: DataSpec, chat: ChatSettings, caches: Sequence[TokenCache], split: Split
) -> tuple[Split, list[dict[str, int]]]:
    """Conversations cut to rows, and for each source how many did not fit or train nothing.

    Raises:
        RefusedError: a source has nothing left to train on.
    """
    train, held_out, unfit = [], [], []
    for cache, spans, held_out_spans in zip(caches, *split, strict=True):
        name = cache.meta["source"]
        fitting, counts = fit(cache, spans, spec.seq_len, chat.too_long)
        if counts["too_long"]:
            logger.warning(
                "{}: {:,} of {:,} conversations are longer than data.seq_len={} "
                "(trainer.too_long={})",
                name, counts["too_long"], len(spans.start), spec.seq_len, chat.too_long,
            )  # fmt: skip
        if counts["nothing_to_train"]:
            logger.warning(
                "{}: left out {:,} conversations with nothing to train", name,
                counts["nothing_to_train"],
            )  # fmt: skip
        if not len(fitting.start):
            raise RefusedError(
                f"{name}: no conversation has anything to train: {len(spans.start)} read, "
                f"{counts['too_long']} longer than data.seq_len={spec.seq_len} "
                f"(trainer.too_long={chat.too_long}), trainer.loss_on={chat.loss_on}"
            )
        train.append(fitting)
        held_out.append(fit(cache, held_out_spans, spec.seq_len, chat.too_long)[0])
        unfit.append(dict(counts))
    return Split(train, held_out), unfit


def _plan(spec: DataSpec, caches: Sequence[TokenCache], spans: Sequence[Spans]) -> list[Rows]:
    plan = pack if isinstance(spec, PackedSpec) else one_per_row
    return [plan(cache, span, spec.seq_len) for cache, span in zip(caches, spans, strict=True)]


def _count(plans: Sequence[Rows], spans: Sequence[Spans], seq_len: int) -> dict[str, Any]:
    """What the rows hold; `trained` are the tokens predicted in one epoch."""
    rows = sum(len(plan) for plan in plans)
    tokens = sum(plan.positions for plan in plans)
    pairs = zip(plans, spans, strict=True)
    return {
        "documents": sum(len(span.start) for span in spans),
        "tokens": tokens,
        "trained": sum(int(trained_targets(plan.cache, span).sum()) for plan, span in pairs),
        "rows": rows,
        "padding": 1 - tokens / (rows * seq_len) if rows else 0.0,
    }
