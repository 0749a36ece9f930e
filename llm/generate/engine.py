"""The decode engine: many prompts through a few rows, or one conversation that goes on.

Prompts are prefilled once each, whatever the number of samples, and take turns in the rows of a
batch: a row that is done is given the next prompt, and when none wait the batch shrinks. The cache
is as large as the texts are by now, in powers of two. The host is asked once per segment of tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key

from llm.core.precision import cast_matrices
from llm.core.spec import RefusedError
from llm.generate.rows import (
    SMALLEST,
    Admitted,
    Plan,
    Rows,
    Written,
    admit,
    bucket,
    decode,
    empty_rows,
    extend,
    mark_seen,
    prefill,
    reshape_rows,
)
from llm.generate.sampler import program_of, values_of
from llm.generate.specs import Sampling
from llm.models.cache import KVCache
from llm.models.specs import ModelSpec

_SEGMENT = 32  # tokens between two looks of the host
_STREAM_SEGMENT = 8  # the same where somebody watches
_PREFILL_TOKENS = 8192  # prompts are prefilled in groups of this size
_SHRINK = 4  # the batch shrinks when it could be so many times smaller
_STOP_IDS = 8  # stop ids are padded to this, so that their number compiles nothing


@dataclass(frozen=True)
class Completion:
    """One answer."""

    ids: list[int]
    """New tokens, the stop token included."""
    log_probs: Float[np.ndarray, " n"]
    """Of these tokens, fp32; see `llm.generate.sampler.sample`."""
    stopped: bool
    """It ended by itself and not at the limit."""


class Engine:
    """Generates with one set of weights. Making one costs a cast of the weights and no compilation.

    Args:
        spec: what the model is made of.
        params: its weights.
        compute_dtype: type of the matrix products and the cache.
    """

    def __init__(self, spec: ModelSpec, params: Any, *, compute_dtype: str = "float32") -> None:
        self.spec = spec
        self.dtype = compute_dtype
        self._params = _cast(params, compute_dtype)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        key: Key[Array, ""],
        stop_ids: Sequence[int] = (),
        n: int = 1,
        batch_size: int = 32,
        is_over: Callable[[list[int]], bool] | None = None,
    ) -> list[list[Completion]]:
        """Continue each prompt `n` times.

        Token i of sample s of prompt p is drawn with a key made of (key, p, s, i), so a text does
        not depend on its neighbours.

        Args:
            prompts: token ids, one or more per prompt.
            sampling: how tokens are drawn, and how many.
            key: all randomness follows from it.
            stop_ids: an answer ends with (and includes) the first of these.
            n: samples per prompt.
            batch_size: rows that are decoded at a time.
            is_over: looks at the tokens of an answer from time to time; True ends it. What was
                written since is still in the answer.

        Returns:
            The answers, [prompt][sample].

        Raises:
            RefusedError: an empty prompt, ids that are no tokens, more tokens than the model can
                see, or a setting out of bounds.
        """
        check_prompts(self.spec, prompts, sampling.max_new_tokens)
        if n < 1 or batch_size < 1:
            raise RefusedError(f"n={n}, batch_size={batch_size}: expected at least 1")
        batch = _Batch(self, prompts, sampling, key, pad_stop_ids(stop_ids), n)
        return batch.run(batch_size, is_over)

    def session(self, seed: int) -> Session:
        """One text that goes on, such as a conversation."""
        return Session(self, seed)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> KVCache:
        """A cache of all but the last token of each prompt."""
        lengths = [len(prompt) - 1 for prompt in prompts]
        width = bucket(max(lengths), SMALLEST, self.spec.max_seq_len)
        tokens_BT = np.zeros((bucket(len(prompts)), width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : lengths[row]] = prompt[:-1]
        lengths_B = np.zeros(len(tokens_BT), np.int32)
        lengths_B[: len(prompts)] = lengths
        return prefill(self.spec, self._params, tokens_BT, lengths_B, self.dtype)

    def extend(self, cache: KVCache, ids: Sequence[int]) -> KVCache:
        """The cache of one row with these tokens after what it holds."""
        tokens_1T = np.zeros((1, bucket(len(ids), SMALLEST, cache.capacity)), np.int32)
        tokens_1T[0, : len(ids)] = ids
        new_B = np.asarray([len(ids)], np.int32)
        return extend(self.spec, self._params, cache, tokens_1T, new_B, self.dtype)

    def decode(
        self, rows: Rows, sampling: Sampling, stop_ids: np.ndarray, steps: int
    ) -> tuple[Rows, Written]:
        """Some tokens more for each row; what was written comes back as NumPy arrays."""
        plan = Plan(self.dtype, program_of(sampling))
        rows, written = decode(
            self.spec, self._params, rows, values_of(sampling), stop_ids, steps, plan
        )
        return rows, jax.device_get(written)


def _cast(params: Any, dtype: str) -> Any:
    """Once, not in every segment."""
    if all(p.dtype == jnp.dtype(dtype) for p in jax.tree.leaves(params) if p.ndim >= 2):
        return params
    return jax.jit(cast_matrices, static_argnums=1)(params, dtype)


@dataclass
class _Slot:
    """What a row is busy with."""

    prompt: int
    sample: int
    length: int
    """Tokens in the cache."""
    ids: list[int]
    log_probs: list[np.ndarray]


class _Batch:
    """One call of `Engine.generate`."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        key: Key[Array, ""],
        stop_ids: np.ndarray,
        n: int,
    ) -> None:
        self.engine = engine
        self.prompts = prompts
        self.sampling = sampling
        self.key = key
        self.stop_ids = stop_ids
        # Prompts of like length come together: less padding, smaller caches.
        order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
        self.waiting = deque((p, s) for p in order for s in range(n))
        self.slots: list[_Slot | None] = []
        self.rows: Rows | None = None
        self.prefilled: dict[int, tuple[KVCache, int]] = {}
        self.answers: list[list[Completion | None]] = [[None] * n for _ in prompts]

    def run(
        self, batch_size: int, is_over: Callable[[list[int]], bool] | None
    ) -> list[list[Completion]]:
        self.slots = [None] * bucket(min(batch_size, len(self.waiting)), largest=batch_size)
        while self.waiting or any(self.slots):
            self._admit()
            self._fit()
            assert self.rows is not None
            self.rows, written = self.engine.decode(
                self.rows, self.sampling, self.stop_ids, _SEGMENT
            )
            self._harvest(written, is_over)
        return [[answer for answer in answers if answer] for answers in self.answers]

    def _admit(self) -> None:
        """Give the free rows to those who wait."""
        free = [i for i, slot in enumerate(self.slots) if slot is None]
        coming = [(i, *self.waiting.popleft()) for i in free[: len(self.waiting)]]
        if not coming:
            return
        self._prefill(sorted({p for _, p, _ in coming} - self.prefilled.keys()))
        for row, prompt, sample in coming:
            length = len(self.prompts[prompt]) - 1
            self.slots[row] = _Slot(prompt, sample, length, [], [])
        self._fit()
        assert self.rows is not None
        for cache in {id(c): c for c, _ in self.prefilled.values()}.values():
            members = [c for c in coming if self.prefilled[c[1]][0] is cache]
            if members:
                self._place(cache, members)
        still = {p for p, _ in self.waiting}
        self.prefilled = {p: entry for p, entry in self.prefilled.items() if p in still}

    def _prefill(self, new: list[int]) -> None:
        """Prefill prompts in groups of like length."""
        new.sort(key=lambda p: len(self.prompts[p]))
        while new:
            group = [new.pop()]  # the longest that is left
            width = bucket(len(self.prompts[group[0]]) - 1, SMALLEST)
            while new and (len(group) + 1) * width <= _PREFILL_TOKENS:
                group.append(new.pop())
            cache = self.engine.prefill([self.prompts[p] for p in group])
            self.prefilled |= {p: (cache, row) for row, p in enumerate(group)}

    def _place(self, cache: KVCache, members: list[tuple[int, int, int]]) -> None:
        B = len(self.slots)
        columns = {name: np.zeros(B, np.int32) for name in Admitted._fields}
        columns["source_B"][:] = -1
        for row, prompt, sample in members:
            values = (
                self.prefilled[prompt][1], self.prompts[prompt][-1],
                self.sampling.max_new_tokens, prompt, sample,
            )  # fmt: skip
            for column, value in zip(columns.values(), values, strict=True):
                column[row] = value
        new = Admitted(**columns)
        assert self.rows is not None
        self.rows = admit(self.rows, cache, new, self.key)
        if self.rows.seen_BV is not None:
            texts = {row: self.prompts[prompt] for row, prompt, _ in members}
            tokens_BT = seen_tokens(texts, B, self.engine.spec.vocab)
            self.rows = mark_seen(self.rows, tokens_BT, new.source_B >= 0)

    def _fit(self) -> None:
        """Make the batch as small and the cache as large as the next segment needs them."""
        busy = [i for i, slot in enumerate(self.slots) if slot]
        B = len(self.slots)
        if not self.waiting and bucket(len(busy)) * _SHRINK <= B:
            B = bucket(len(busy))
        limit = self.sampling.max_new_tokens
        needed = max(
            slot.length + min(_SEGMENT, limit - len(slot.ids)) for slot in self.slots if slot
        )
        capacity = bucket(needed, SMALLEST, self.engine.spec.max_seq_len)
        if self.rows is None:
            plan = Plan(self.engine.dtype, program_of(self.sampling))
            self.rows = empty_rows(self.engine.spec, self.key, (B, capacity), plan)
        elif len(self.slots) > B or self.rows.cache.capacity < capacity:
            kept = busy if len(self.slots) > B else list(range(B))
            filler = [i for i, slot in enumerate(self.slots) if slot is None]
            kept = [*kept, *filler[: B - len(kept)]]
            self.rows = reshape_rows(self.rows, np.asarray(kept, np.int32), capacity)
            self.slots = [self.slots[i] for i in kept]

    def _harvest(self, written: Written, is_over: Callable[[list[int]], bool] | None) -> None:
        """Take what was written; free the rows that are done."""
        ended = np.zeros(len(self.slots), bool)
        for row, slot in enumerate(self.slots):
            if slot is None:
                continue
            count = int(written.counts_B[row])
            slot.ids += written.tokens_BN[row, :count].tolist()
            slot.log_probs.append(written.log_probs_BN[row, :count])
            slot.length += count
            over = is_over is not None and is_over(slot.ids)
            if written.done_B[row] or over:
                stopped = over or slot.ids[-1] in self.stop_ids
                answer = Completion(slot.ids, np.concatenate(slot.log_probs), bool(stopped))
                self.answers[slot.prompt][slot.sample] = answer
                self.slots[row] = None
                ended[row] = True
        if is_over is not None and self.rows is not None:
            self.rows = self.rows._replace(done_B=self.rows.done_B | ended)


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
        plan = Plan(engine.dtype, program_of(sampling))
        rows = empty_rows(spec, self._key, (1, SMALLEST), plan)._replace(
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
        done = False
        while not done:
            needed = min(len(text) + _STREAM_SEGMENT, spec.max_seq_len)
            capacity = bucket(needed, SMALLEST, spec.max_seq_len)
            if rows.cache.capacity < capacity:
                rows = reshape_rows(rows, np.zeros((1,), np.int32), capacity)
            rows, written = engine.decode(rows, sampling, pad_stop_ids(stop_ids), _STREAM_SEGMENT)
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
            return self._engine.prefill([ids])
        cache = self._cache._replace(lengths_B=jnp.asarray([known], jnp.int32))
        new = ids[known:-1]
        spec = self._engine.spec
        capacity = bucket(len(ids), SMALLEST, spec.max_seq_len)
        if cache.capacity < capacity:
            cache = _grown(cache, capacity)
        return self._engine.extend(cache, new) if new else cache


def _grown(cache: KVCache, capacity: int) -> KVCache:
    """The same with more room."""
    more = ((0, 0), (0, 0), (0, capacity - cache.capacity), (0, 0))
    keys, values = (tuple(jnp.pad(x, more) for x in part) for part in (cache.keys, cache.values))
    return KVCache(keys, values, cache.lengths_B)


def pad_stop_ids(stop_ids: Sequence[int]) -> Int32[np.ndarray, " n"]:
    """Stop ids and, up to a fixed number, ids that no token has."""
    return np.pad(
        np.asarray(stop_ids, np.int32),
        (0, max(_STOP_IDS - len(stop_ids), 0)),
        constant_values=-1,
    )


def seen_tokens(texts: dict[int, Sequence[int]], rows: int, vocab: int) -> Int32[np.ndarray, "B T"]:
    """The tokens of some rows, padded with `vocab`, which is no token."""
    width = bucket(max(map(len, texts.values())), SMALLEST)
    tokens_BT = np.full((rows, width), vocab, np.int32)
    for row, text in texts.items():
        tokens_BT[row, : len(text)] = text
    return tokens_BT


def check_prompts(spec: ModelSpec, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse prompts that cannot be continued by so many tokens.

    Raises:
        RefusedError: an empty prompt, an id that is no token, or more than the model can see.
    """
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise RefusedError("every prompt needs at least one token")
    check_ids(spec, (index for prompt in prompts for index in prompt))
    longest = max(map(len, prompts))
    if longest + max_new_tokens > spec.max_seq_len:
        raise RefusedError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit into the "
            f"{spec.max_seq_len} that the model sees"
        )


def check_ids(spec: ModelSpec, ids: Iterable[int]) -> None:
    """Refuse ids that are no tokens: JAX would silently take another row of the embedding.

    Raises:
        RefusedError: with the first of them.
    """
    for index in ids:
        if not 0 <= index < spec.vocab:
            raise RefusedError(f"token {index}: the model has tokens 0 to {spec.vocab - 1}")
