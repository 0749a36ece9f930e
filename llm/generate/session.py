"""One text that goes on, such as a conversation, with a cache that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from llm.generate.prompt_checks import check_prompts
from llm.generate.rows import (
    SMALLEST,
    bucket,
    empty_rows,
    mark_seen,
    pad_stop_ids,
    reshape_cache,
    reshape_rows,
    seen_tokens,
)
from llm.generate.specs import Sampling
from llm.models.cache import KVCache

if TYPE_CHECKING:
    from llm.generate.engine import Engine

_SEGMENT = 8  # tokens that come at a time: somebody watches
_THE_ROW = np.zeros((1,), np.int32)


class Session:
    """One row whose cache is kept between calls.

    Args:
        engine: with the weights.
        seed: all randomness follows from it and the number of calls.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._key = jax.random.key(seed)
        self._calls = 0
        self._cache: KVCache | None = None
        self.tokens: list[int] = []
        """What the cache holds."""

    def stream(
        self, ids: Sequence[int], sampling: Sampling, stop_ids: Sequence[int]
    ) -> Iterator[list[int]]:
        """Continue `ids`, the whole text so far, of which what the cache holds is not run again.

        Yields:
            New tokens, a few at a time; a stop token is the last. Closing the iterator early leaves
            the session as if the tokens yielded so far had been all.

        Raises:
            RefusedError: as `Engine.generate`; the session stays as it is.
        """
        engine, spec = self._engine, self._engine.spec
        check_prompts(spec, [ids], sampling.max_new_tokens)
        cache, text = self._catch_up(list(ids)), list(ids)
        self._cache = None  # it is donated below: nobody may hold on to it
        self.tokens = []
        rows = empty_rows(spec, self._key, (1, SMALLEST), engine.plan(sampling))._replace(
            cache=cache,
            last_B=jnp.asarray(text[-1:], jnp.int32),
            done_B=jnp.zeros((1,), bool),
            keys_B=jax.random.fold_in(self._key, self._calls)[None],
            limits_B=jnp.asarray([sampling.max_new_tokens], jnp.int32),
        )
        self._calls += 1
        if rows.seen_BV is not None:
            tokens = seen_tokens({0: text}, 1, spec.vocab)
            rows = mark_seen(rows, tokens, np.ones((1,), bool))
        ends, done = pad_stop_ids(stop_ids), False
        while not done:
            needed = min(len(text) + _SEGMENT, spec.max_seq_len)
            capacity = bucket(needed, SMALLEST, spec.max_seq_len)
            if rows.cache.capacity < capacity:
                rows = reshape_rows(rows, _THE_ROW, capacity)
            rows, written = engine.decode(rows, sampling, ends, _SEGMENT)
            new = written.tokens_BN[0, : int(written.counts_B[0])].tolist()
            text += new
            done = bool(written.done_B[0])
            self._cache, self.tokens = rows.cache, text[:-1]
            yield new
            self._cache, self.tokens = None, []
        self._cache, self.tokens = rows.cache, text[:-1]

    def _catch_up(self, ids: list[int]) -> KVCache:
        """A cache of all but the last of these tokens."""
        known = 0
        for ours, theirs in zip(self.tokens, ids[:-1], strict=False):
            if ours != theirs:
                break
            known += 1
        if self._cache is None or known == 0:
            return self._engine.prefill([ids], 1)
        cache = self._cache._replace(lengths_B=jnp.asarray([known], jnp.int32))
        new = ids[known:-1]
        spec = self._engine.spec
        capacity = bucket(len(ids), SMALLEST, spec.max_seq_len)
        if cache.capacity < capacity:
            cache = reshape_cache(cache, _THE_ROW, capacity)
        return self._engine.extend(cache, new) if new else cache
