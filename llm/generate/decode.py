"""Sampling continuations of a batch of prompts: prefill, then one token at a time on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from llm.core.spec import RefusedError
from llm.generate.sampler import sample_token
from llm.models.binding import bind
from llm.models.cache import KVCache
from llm.models.specs import ModelSpec

# Prompts and stop ids are padded, so that few programs are compiled.
_PROMPT_BUCKET = 32
_STOP_IDS = 8


def generate(
    spec: ModelSpec,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: Key[Array, ""],
    max_new_tokens: int,
    temperature: float = 0.8,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
    compute_dtype: str = "float32",
) -> list[list[int]]:
    """Continue each prompt.

    Row r draws its tokens with keys made of (key, r, position), so a continuation does not depend
    on what else is in the batch.

    Args:
        spec: what the model is made of.
        params: its weights.
        prompts: token ids, one or more per prompt.
        key: all randomness follows from it.
        max_new_tokens: length of the longest continuation.
        temperature, top_p: see `sample_token`.
        stop_ids: a continuation ends with (and includes) the first of these.
        compute_dtype: type of the matrix products and the cache.

    Returns:
        The new tokens of each prompt.

    Raises:
        RefusedError: an empty prompt, ids that are no tokens, more tokens than the model can see,
            or a setting out of bounds.
    """
    check_prompts(spec, prompts, max_new_tokens)
    if not temperature >= 0:
        raise RefusedError(f"temperature={temperature}: expected 0 or more")
    if not 0 < top_p <= 1:
        raise RefusedError(f"top_p={top_p}: expected more than 0 and at most 1")
    longest, limit = max(map(len, prompts)), spec.max_seq_len
    width = min(-(-longest // _PROMPT_BUCKET) * _PROMPT_BUCKET, limit - max_new_tokens)
    tokens_BT = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt
    lengths_B = np.asarray([len(prompt) for prompt in prompts], np.int32)
    new_BT, counts_B = _generate(
        spec,
        params,
        tokens_BT,
        lengths_B,
        key,
        np.resize([*stop_ids, -1], max(_STOP_IDS, len(stop_ids) + 1)).astype(np.int32),
        max_new_tokens,
        temperature,
        top_p,
        compute_dtype,
    )
    return [row[:n].tolist() for row, n in zip(np.asarray(new_BT), counts_B.tolist(), strict=True)]


def check_prompts(spec: ModelSpec, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse prompts that cannot be continued by so many tokens.

    Raises:
        RefusedError: an empty prompt, an id that is no token, or more than the model can see.
    """
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise RefusedError("every prompt needs at least one token")
    if max_new_tokens < 1:
        raise RefusedError(f"max_new_tokens={max_new_tokens}: expected at least 1")
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


@partial(jax.jit, static_argnums=(0, 6, 7, 8, 9))
def _generate(
    spec: ModelSpec,
    params: Any,
    tokens_BT: Int[Array, "B T"],
    lengths_B: Int[Array, " B"],
    key: Key[Array, ""],
    stop_ids: Int[Array, " n"],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    compute_dtype: str,
) -> tuple[Int[Array, "B new"], Int[Array, " B"]]:
    model = bind(spec, params, compute_dtype=compute_dtype)
    B, T = tokens_BT.shape
    row_keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(B))

    def draw(hidden_BD: Array, position: Array | int) -> Array:
        keys_B = jax.vmap(lambda k: jax.random.fold_in(k, position))(row_keys_B)
        logits_BV = model.logits(hidden_BD[:, None])[:, 0]
        return sample_token(logits_BV, keys_B, temperature=temperature, top_p=top_p)

    # The cache is made inside the jitted function: passing it in would copy it.
    cache = KVCache.create(spec, B, T + max_new_tokens, jnp.dtype(compute_dtype))
    real_BT = (jnp.arange(T) < lengths_B[:, None]).astype(jnp.int32)
    hidden_BTD, cache = model(tokens_BT, segment_ids_BT=real_BT, cache=cache)
    first_B = draw(hidden_BTD[jnp.arange(B), lengths_B - 1], 0)
    new_BT = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(first_B)
    done_B = jnp.isin(first_B, stop_ids)
    counts_B = jnp.ones((B,), jnp.int32)

    def unfinished(carry: Any) -> Array:
        step, _, done_B, _, _ = carry
        return (step < max_new_tokens) & ~done_B.all()

    def advance(carry: Any) -> Any:
        step, new_BT, done_B, counts_B, cache = carry
        last_B = new_BT[:, step - 1]
        hidden_BTD, cache = model(
            last_B[:, None], segment_ids_BT=(~done_B)[:, None].astype(jnp.int32), cache=cache
        )
        token_B = draw(hidden_BTD[:, 0], step)
        counts_B = counts_B + ~done_B
        new_BT = new_BT.at[:, step].set(jnp.where(done_B, 0, token_B))
        return step + 1, new_BT, done_B | jnp.isin(token_B, stop_ids), counts_B, cache

    start = (jnp.int32(1), new_BT, done_B, counts_B, cache)
    _, new_BT, _, counts_B, _ = jax.lax.while_loop(unfinished, advance, start)
    return new_BT, counts_B
