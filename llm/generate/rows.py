"""What is on the device while text is generated, and the compiled programs that change it.

B rows (slots that prompts take turns in), S cache capacity, V vocabulary. Every program is compiled
per shape; shapes come in powers of two, so that a long list of prompts needs a handful of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Int, Int32, Key

from llm.generate.sampler import Program, Values, sample
from llm.models.binding import bind
from llm.models.cache import KVCache, Leaders
from llm.models.specs import ModelSpec

_STOP_IDS = 8  # stop ids are padded to this, so that their number compiles nothing
SMALLEST = 64  # the smallest width of prompts and capacity of caches, tokens
SMALLEST_REST = 16  # of prompts, less what all of them begin with


def bucket(n: int, smallest: int = 1, largest: int | None = None) -> int:
    """The next power of two, at least `smallest` and at most `largest`."""
    size = max(smallest, 1 << max(n - 1, 0).bit_length())
    return size if largest is None else min(size, largest)


class Rows(NamedTuple):
    """Texts that are being written."""

    cache: KVCache
    """Keys and values of everything but the last token."""
    last_B: Int[Array, " B"]
    """The last token: it goes through the model next."""
    done_B: Bool[Array, " B"]
    """Nothing more is written to these rows."""
    keys_B: Key[Array, " B"]
    """One per row; token i of an answer is drawn with `fold_in(key, i)`."""
    counts_B: Int[Array, " B"]
    """Tokens written."""
    limits_B: Int[Array, " B"]
    """Tokens to write at most."""
    seen_BV: Bool[Array, "B V"] | None
    """Tokens in the text so far, where a repetition penalty asks for them."""


class Alike(NamedTuple):
    """Rows that say the same."""

    texts_B: Any
    """int32 [B]: the same number where it is the same text."""
    width: int
    """Texts that go through the model at a time: no fewer than there are."""


class Written(NamedTuple):
    """What one call of `decode` wrote: the first `counts_B` columns of each row.

    Arrays [B, N], [B, N], [B] and [B]: of JAX on the device, of NumPy for the host.
    """

    tokens_BN: Any
    log_probs_BN: Any
    counts_B: Any
    done_B: Any


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def empty_rows(
    spec: ModelSpec,
    key: Key[Array, ""],
    shape: tuple[int, int],
    plan: Plan,
    place: NamedSharding | None = None,
) -> Rows:
    """Rows that wait for a prompt; `shape` is [B, S], `place` where they are made."""
    B, S = shape
    rows = Rows(
        cache=KVCache.create(spec, B, S, jnp.dtype(plan.cache_dtype)),
        last_B=jnp.zeros((B,), jnp.int32),
        done_B=jnp.ones((B,), bool),
        keys_B=jnp.repeat(key[None], B, axis=0),
        counts_B=jnp.zeros((B,), jnp.int32),
        limits_B=jnp.zeros((B,), jnp.int32),
        seen_BV=jnp.zeros((B, spec.vocab), bool) if plan.program.penalised else None,
    )
    return rows if place is None else jax.lax.with_sharding_constraint(rows, place)


class Plan(NamedTuple):
    """What the compiled programs depend on besides shapes."""

    dtype: str
    """Of the matrix products."""
    cache_dtype: str
    program: Program


@partial(jax.jit, static_argnums=(0, 5), donate_argnums=2)
def extend(
    spec: ModelSpec,
    params: Any,
    cache: KVCache,
    tokens_BT: Int[Array, "B T"],
    new_B: Int[Array, " B"],
    dtype: str,
) -> KVCache:
    """The cache with the first `new_B` of these tokens after what it holds."""
    model = bind(spec, params, compute_dtype=dtype)
    real_BT = (jnp.arange(tokens_BT.shape[1]) < new_B[:, None]).astype(jnp.int32)
    return model(tokens_BT, segment_ids_BT=real_BT, cache=cache)[1]


@partial(jax.jit, static_argnums=(0, 4, 5))
def prefill(
    spec: ModelSpec,
    params: Any,
    tokens_BT: Int[Array, "B T"],
    lengths_B: Int[Array, " B"],
    dtype: str,
    cache_dtype: str,
) -> KVCache:
    """A cache of capacity T with the first `lengths_B` tokens of each row in it."""
    B, T = tokens_BT.shape
    cache = KVCache.create(spec, B, T, jnp.dtype(cache_dtype))
    return extend(spec, params, cache, tokens_BT, lengths_B, dtype)


class Admitted(NamedTuple):
    """Prompts for the rows that are free, int32 [B]; what stands at other rows is ignored."""

    source_B: Any
    """Row of the prefilled cache that holds the prompt; -1 leaves the row alone."""
    last_B: Any
    limits_B: Any
    prompts_B: Any
    samples_B: Any
    """Number of the prompt and of the sample of it: what a row's key is made of."""


@partial(jax.jit, donate_argnums=0)
def admit(rows: Rows, prefilled: KVCache, new: Admitted, key: Key[Array, ""]) -> Rows:
    """Put prefilled prompts into rows; one prompt may go into many."""
    is_new_B = new.source_B >= 0

    def place(old: Array, coming: Array) -> Array:
        # One of the two may have more slots: what both have is where the prompts are.
        both = tuple(
            slice(min(sizes)) for sizes in zip(old.shape[1:], coming.shape[1:], strict=True)
        )
        here = (slice(None), *both)
        chosen = jnp.where(is_new_B[:, None, None, None], coming[new.source_B, *both], old[here])
        return old.at[here].set(chosen)

    def key_of(prompt: Array, number: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, prompt), number)

    cache = KVCache(
        keys=tuple(map(place, rows.cache.keys, prefilled.keys)),
        values=tuple(map(place, rows.cache.values, prefilled.values)),
        lengths_B=jnp.where(is_new_B, prefilled.lengths_B[new.source_B], rows.cache.lengths_B),
    )
    keys_B = jax.vmap(key_of)(new.prompts_B, new.samples_B)
    return rows._replace(
        cache=cache,
        last_B=jnp.where(is_new_B, new.last_B, rows.last_B),
        done_B=rows.done_B & ~is_new_B,
        keys_B=jnp.where(is_new_B, keys_B, rows.keys_B),
        counts_B=jnp.where(is_new_B, 0, rows.counts_B),
        limits_B=jnp.where(is_new_B, new.limits_B, rows.limits_B),
    )


@partial(jax.jit, donate_argnums=0)
def mark_seen(rows: Rows, tokens_BT: Int[Array, "B T"], is_new_B: Bool[Array, " B"]) -> Rows:
    """Begin the record of seen tokens of new rows; `tokens_BT` holds V where there is no token."""
    assert rows.seen_BV is not None
    B = len(is_new_B)
    fresh_BV = jnp.zeros_like(rows.seen_BV)
    fresh_BV = fresh_BV.at[jnp.arange(B)[:, None], tokens_BT].set(True, mode="drop")
    return rows._replace(seen_BV=jnp.where(is_new_B[:, None], fresh_BV, rows.seen_BV))


@partial(jax.jit, static_argnums=2)
def reshape_cache(cache: KVCache, kept_B: Int[Array, " B"], capacity: int) -> KVCache:
    """Some of a cache's rows, in another order, with as much room or more."""
    none, more = (0, 0), (0, capacity - cache.capacity)
    return KVCache(
        keys=tuple(jnp.pad(k_BKHS[kept_B], (none, none, none, more)) for k_BKHS in cache.keys),
        values=tuple(jnp.pad(v_BKSH[kept_B], (none, none, more, none)) for v_BKSH in cache.values),
        lengths_B=cache.lengths_B[kept_B],
    )


@partial(jax.jit, static_argnums=(2, 3))
def reshape_rows(
    rows: Rows, kept_B: Int[Array, " B"], capacity: int, place: NamedSharding | None = None
) -> Rows:
    """Some of the rows, in another order, with as much room in the cache or more."""
    cache, *rest = rows
    kept = Rows(reshape_cache(cache, kept_B, capacity), *jax.tree.map(lambda x: x[kept_B], rest))
    return kept if place is None else jax.lax.with_sharding_constraint(kept, place)


def _leaders(
    texts_B: Int[Array, " B"], active_B: Bool[Array, " B"], width: int
) -> tuple[Leaders, Int[Array, ""]]:
    """The first active row of each text, and how many there are."""
    B = len(texts_B)
    same_BB = (texts_B[:, None] == texts_B) & active_B
    first_B = jnp.argmax(same_BB, axis=1)
    leads_B = active_B & (first_B == jnp.arange(B))
    (rows_W,) = jnp.nonzero(leads_B, size=width, fill_value=0)
    return Leaders(rows_W, jnp.cumsum(leads_B)[first_B] - 1), leads_B.sum()


@partial(jax.jit, static_argnums=(0, 6, 7, 9), donate_argnums=2)
def decode(
    spec: ModelSpec,
    params: Any,
    rows: Rows,
    values: Values,
    stop_ids: Int[Array, " n"],
    few: int | Int[Array, ""],
    steps: int,
    plan: Plan,
    texts_B: Int[Array, " B"] | None = None,
    width: int | None = None,
) -> tuple[Rows, Written]:
    """Write up to `steps` tokens to each row; no word to the host until then.

    A row is done after a stop id or at its limit. When no more rows than `few` are unfinished, the
    rest is not run.

    With a `width`, rows that hold the same text go through the model once: rows of the same number
    in `texts_B` hold the same text. When there are more unfinished texts than that, the rest is not
    run.
    """
    model = bind(spec, params, compute_dtype=plan.dtype)
    B = len(rows.last_B)
    before_B = rows.counts_B
    written = (jnp.zeros((B, steps), jnp.int32), jnp.zeros((B, steps), jnp.float32))

    def unfinished(carry: Any) -> Array:
        step, rows, texts_B, _ = carry
        more = (step < steps) & ((~rows.done_B).sum() > few)
        if width is not None:
            more &= _leaders(texts_B, ~rows.done_B, width)[1] <= width
        return more

    def write_one(carry: Any) -> Any:
        step, rows, texts_B, (tokens_BN, log_probs_BN) = carry
        active_B = ~rows.done_B
        leaders = None if width is None else _leaders(texts_B, active_B, width)[0]
        seen_WV = rows.seen_BV
        if leaders is not None and seen_WV is not None:
            seen_WV = seen_WV[leaders.rows_W]
        hidden_W1D, cache = model(
            rows.last_B[:, None], segment_ids_BT=active_B[:, None].astype(jnp.int32),
            cache=rows.cache, leaders=leaders,
        )  # fmt: skip
        logits_WV = model.logits(hidden_W1D)[:, 0]
        keys_B = jax.vmap(jax.random.fold_in)(rows.keys_B, rows.counts_B)
        of_B = None if leaders is None else leaders.of_B
        token_B, log_prob_B = sample(logits_WV, keys_B, seen_WV, values, plan.program, of_B)
        counts_B = rows.counts_B + active_B
        seen_BV = rows.seen_BV
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(B), token_B].max(active_B)
        rows = rows._replace(
            cache=cache,
            last_B=jnp.where(active_B, token_B, rows.last_B),
            done_B=rows.done_B | jnp.isin(token_B, stop_ids) | (counts_B >= rows.limits_B),
            counts_B=counts_B,
            seen_BV=seen_BV,
        )
        # Rows that are done write on in their columns; `counts_B` says what counts.
        tokens_BN = jax.lax.dynamic_update_index_in_dim(tokens_BN, token_B, step, 1)
        log_probs_BN = jax.lax.dynamic_update_index_in_dim(log_probs_BN, log_prob_B, step, 1)
        if width is not None:  # those of one text that were given the same token are one still
            same_BB = (texts_B[:, None] == texts_B) & (token_B[:, None] == token_B) & active_B
            texts_B = jnp.argmax(same_BB, axis=1).astype(jnp.int32)
        return step + 1, rows, texts_B, (tokens_BN, log_probs_BN)

    carry = jnp.int32(0), rows, texts_B, written
    _, rows, _, written = jax.lax.while_loop(unfinished, write_one, carry)
    return rows, Written(*written, rows.counts_B - before_B, rows.done_B)


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
