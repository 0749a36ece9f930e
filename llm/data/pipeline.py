"""From a spec to batches: open the sources, tokenise, split, plan the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from llm.core.spec import RefusedError
from llm.data.batches import Batch, Batches, EvalBatches, PackedBatches, PaddedBatches, Shard
from llm.data.bpe import build_tokenizer
from llm.data.loader import Loader
from llm.data.order import RowStream
from llm.data.packing import pack
from llm.data.padding import one_per_row
from llm.data.rows import Rows
from llm.data.sources import open_source
from llm.data.specs import DataSpec, PackedSpec
from llm.data.split import Spans, split_documents
from llm.data.token_cache import TokenCache, tokenise
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

    def eval_batches(self, limit: int | None = None) -> Iterator[Batch]:
        """The held-out rows once, in the same form and order each time.

        Args:
            limit: at most so many batches; they are a random sample of all.
        """
        return self._held_out.take(limit)

    def describe(self) -> str:
        """One line for people."""
        train, held_out = self.fingerprint["train"], self.fingerprint["eval"]
        names = " + ".join(source["name"] for source in self.fingerprint["sources"])
        return (
            f"{self.spec.name} rows from {names}: {train['documents']:,} documents, "
            f"{train['tokens']:,} tokens in {train['rows']:,} rows of up to {self.spec.seq_len} "
            f"({train['padding']:.2%} padding); held out {held_out['documents']:,} documents, "
            f"{held_out['tokens']:,} tokens; vocabulary of {self.tokenizer.vocab_size:,}"
        )


def build_data(
    spec: DataSpec,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    tokenizer: Tokenizer | None = None,
) -> Data:
    """See `DataSpec.build`."""
    if seed < 0:
        raise RefusedError(f"seed={seed}: expected a number that is not negative")
    if spec.batch_size % shard_count:
        raise RefusedError(f"batch_size={spec.batch_size}: {shard_count} hosts cannot share it")
    cache_dir = Path(spec.cache_dir).expanduser()
    sources = [open_source(member, cache_dir) for member in spec.sources]
    weights = [member.weight for member in spec.sources]
    tokenizer = tokenizer or build_tokenizer(spec.tokenizer, sources, weights, cache_dir)
    caches = [tokenise(source, tokenizer, cache_dir) for source in sources]
    split = split_documents(caches, spec.eval_fraction)

    train = _plan(spec, caches, split.train)
    held_out = _plan(spec, caches, split.held_out)
    shard = Shard.of(spec.batch_size, shard_index, shard_count)
    stream = RowStream([len(rows) for rows in train], weights, seed)
    buckets = spec.row_lengths()
    batches: Batches
    if isinstance(spec, PackedSpec):
        batches = PackedBatches(train, stream, shard, spec.seq_len)
    else:
        batches = PaddedBatches(train, stream, shard, buckets, seed)
    fingerprint = {
        "tokenizer": tokenizer.fingerprint,
        "sources": [
            {
                "name": cache.meta["source"],
                "cache": cache.fingerprint,
                "weight": weight,
                **{key: cache.meta[key] for key in ("documents", "tokens", "bytes", "skipped")},
            }
            for cache, weight in zip(caches, weights, strict=True)
        ],
        "train": _count(train, split.train, spec.seq_len),
        "eval": _count(held_out, split.held_out, spec.seq_len),
    }
    data = Data(spec, tokenizer, batches, EvalBatches(held_out, shard, buckets), fingerprint)
    logger.info("data: {}", data.describe())
    return data


def _plan(spec: DataSpec, caches: Sequence[TokenCache], spans: Sequence[Spans]) -> list[Rows]:
    plan = pack if isinstance(spec, PackedSpec) else one_per_row
    return [plan(cache, span, spec.seq_len) for cache, span in zip(caches, spans, strict=True)]


def _count(plans: Sequence[Rows], spans: Sequence[Spans], seq_len: int) -> dict[str, Any]:
    """What the rows hold; `tokens` are those predicted in one epoch."""
    rows = sum(len(plan) for plan in plans)
    tokens = sum(plan.positions for plan in plans)
    return {
        "documents": sum(len(span.start) for span in spans),
        "tokens": tokens,
        "rows": rows,
        "padding": 1 - tokens / (rows * seq_len) if rows else 0.0,
    }
