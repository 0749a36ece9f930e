"""Generates text with one set of weights: many prompts at a time, or one text that goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key

from llm.core.mesh import replicated, texts_sharding
from llm.core.precision import cast_matrices
from llm.core.spec import RefusedError
from llm.generate.batch import Batch, Completion
from llm.generate.prompt_checks import check_prompts
from llm.generate.rows import (
    SMALLEST,
    SMALLEST_REST,
    Alike,
    Plan,
    Rows,
    Written,
    bucket,
    decode,
    extend,
    pad_stop_ids,
    prefill,
    reshape_cache,
)
from llm.generate.sampler import program_of, values_of
from llm.generate.session import Session
from llm.generate.specs import Sampling
from llm.generate.watch import Watch
from llm.models.cache import KVCache
from llm.models.specs import ModelSpec


class Engine:
    """Generates with one set of weights. Making one costs a cast of the weights and no compilation.

    Args:
        spec: what the model is made of.
        params: its weights.
        compute_dtype: type of the matrix products.
        cache_dtype: type of the keys and values kept; `compute_dtype` if left out.
        mesh: devices over which texts are split, where their number divides.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Any,
        *,
        compute_dtype: str = "float32",
        cache_dtype: str | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.spec = spec
        self.dtype, self.cache_dtype = compute_dtype, cache_dtype or compute_dtype
        self.mesh = mesh if mesh is not None and mesh.size > 1 else None
        self.params = _cast(params, compute_dtype)

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
        watch: Watch | None = None,
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
            watch: is told how it goes.

        Returns:
            The answers, [prompt][sample].

        Raises:
            RefusedError: an empty prompt, ids that are no tokens, more tokens than the model can
                see, or a setting out of bounds.
        """
        check_prompts(self.spec, prompts, sampling.max_new_tokens)
        if n < 1 or batch_size < 1:
            raise RefusedError(f"n={n}, batch_size={batch_size}: expected at least 1")
        batch = Batch(self, prompts, sampling, key, pad_stop_ids(stop_ids), n, watch)
        return batch.run(batch_size, is_over)

    def session(self, seed: int) -> Session:
        """One text that goes on, such as a conversation."""
        return Session(self, seed)

    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        rows: int,
        beginning: KVCache | None = None,
        common: int = 0,
    ) -> KVCache:
        """A cache of all but the last token of each prompt, in the first of so many rows.

        Args:
            prompts: token ids.
            rows: of the cache.
            beginning: one row that holds the `common` tokens which all of them begin with, and
                which do not go through the model again.
            common: their number.
        """
        most = self.spec.max_seq_len
        lengths = [len(prompt) - 1 - common for prompt in prompts]
        width = bucket(max(lengths), SMALLEST_REST if common else SMALLEST, most)
        tokens_BT = np.zeros((rows, width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : lengths[row]] = prompt[common:-1]
        lengths_B = np.zeros(len(tokens_BT), np.int32)
        lengths_B[: len(prompts)] = lengths
        if beginning is None:
            return prefill(
                self.spec, self.params, tokens_BT, lengths_B, self.dtype, self.cache_dtype
            )
        capacity = bucket(common + max(lengths), SMALLEST, most)
        cache = reshape_cache(beginning, np.zeros(rows, np.int32), capacity)
        return extend(self.spec, self.params, cache, tokens_BT, lengths_B, self.dtype)

    def extend(self, cache: KVCache, ids: Sequence[int]) -> KVCache:
        """The cache of one row with these tokens after what it holds."""
        tokens_1T = np.zeros((1, bucket(len(ids), SMALLEST, cache.capacity)), np.int32)
        tokens_1T[0, : len(ids)] = ids
        new_B = np.asarray([len(ids)], np.int32)
        return extend(self.spec, self.params, cache, tokens_1T, new_B, self.dtype)

    @property
    def platform(self) -> str:
        """Of the devices with the weights: "cpu", "gpu", ..."""
        return next(iter(jax.tree.leaves(self.params)[0].devices())).platform

    def place_of(self, rows: int) -> NamedSharding | None:
        """Where so many rows are written: split over the devices, or whole on each."""
        return None if self.mesh is None else texts_sharding(self.mesh, rows)

    def plan(self, sampling: Sampling) -> Plan:
        """What the programs that write text depend on."""
        return Plan(self.dtype, self.cache_dtype, program_of(sampling))

    def decode(
        self,
        rows: Rows,
        sampling: Sampling,
        stop_ids: np.ndarray,
        steps: int,
        few: int = 0,
        alike: Alike | None = None,
    ) -> tuple[Rows, Written]:
        """Up to `steps` tokens more for each row, see `llm.generate.rows.decode`.

        What was written comes back as NumPy arrays.
        """
        plan, values = self.plan(sampling), values_of(sampling)
        texts_B, width = alike or (None, None)
        rows, written = decode(
            self.spec, self.params, rows, values, stop_ids, few, steps, plan, texts_B, width
        )
        if not written.counts_B.is_fully_addressable:  # rows of other processes
            written = _everywhere(replicated(written.counts_B.sharding.mesh))(written)
        return rows, jax.device_get(written)


@lru_cache
def _everywhere(whole: NamedSharding) -> Callable[[Written], Written]:
    return jax.jit(lambda written: written, out_shardings=whole)


def _cast(params: Any, dtype: str) -> Any:
    """Once, not in every segment."""
    if all(p.dtype == jnp.dtype(dtype) for p in jax.tree.leaves(params) if p.ndim >= 2):
        return params
    return jax.jit(cast_matrices, static_argnums=1)(params, dtype)
