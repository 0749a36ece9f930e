"""What GPT and Llama share: one forward pass for training, prefill and decoding."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from llm.core.mesh import heads_sharding, rows_sharding
from llm.models.attention import Attention, TokenIndex, attention, attention_to_cache
from llm.models.cache import KVCache, Leaders, write
from llm.models.linear import never_one_row
from llm.models.specs import ModelSpec


class Decoder(nnx.Module):
    """Embedding, blocks, final norm, head. Subclasses make the parts and define `embed`.

    Every block is called as `block(x_BTD, attend, **extras)`: it makes queries, keys and values and
    hands them to `attend`, which knows about masks and the cache.
    """

    spec: ModelSpec
    embedding: Any
    blocks: nnx.List[Any]
    final_norm: Any

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        # How it is computed and not what: `llm.models.binding.bind` chooses.
        self.remat = "none"
        self.attention: Attention = attention
        self.mesh: Mesh | AbstractMesh | None = None

    @abc.abstractmethod
    def embed(
        self, tokens_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Token (and, where the model has one, position) embedding."""

    @abc.abstractmethod
    def block_arguments(self, positions_BT: Int[Array, "B T"]) -> dict[str, Any]:
        """What every block needs and is made once per pass."""

    @abc.abstractmethod
    def head_VD(self) -> Float[Array, "V D"]:
        """The output projection, one row per token of the vocabulary."""

    def logits(self, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """fp32 scores over the vocabulary. For training use the chunked cross-entropy instead."""
        B, T, D = hidden_BTD.shape
        head_VD = self.head_VD().astype(hidden_BTD.dtype)

        def scores(x_MD: Array) -> Array:
            return jnp.einsum("MD,VD->MV", x_MD, head_VD, preferred_element_type=jnp.float32)

        return never_one_row(scores, hidden_BTD.reshape(B * T, D)).reshape(B, T, -1)

    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        *,
        segment_ids_BT: Int[Array, "B T"] | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        ends_BT: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        leaders: Leaders | None = None,
        dropout_keys_B: Key[Array, " B"] | None = None,
        embedding_noise_BTD: Float[Array, "B T D"] | None = None,
    ) -> tuple[Float[Array, "W T D"], KVCache | None]:
        """Hidden states after the final norm, and the cache with the new tokens in it.

        W is B, unless some rows go through the model for others.

        Args:
            tokens_BT: token ids.
            segment_ids_BT: document of each token, 0 is padding; all one document if left out.
                With a cache: 1 for new tokens, 0 for padding, padding after the tokens.
            positions_BT: place of each token in its document; 0, 1, 2, ... if left out. With a
                cache they follow from the cache's lengths and must be left out.
            ends_BT: place in the row after the last token that goes on from each one, where texts
                that begin alike share their beginnings; see `llm.data.prefix_tree`. The end of its
                document if left out. Not with a cache.
            cache: what the rows have seen before.
            leaders: rows that hold and are given the same as others, and go through the model for
                them: the hidden states are theirs, [W, T, D]. All rows do if left out.
            dropout_keys_B: one key per row switches dropout on.
            embedding_noise_BTD: added to the embedded tokens; not with a cache.

        Raises:
            ValueError: more tokens than the model or (outside jit) the cache can hold. Inside jit
                the hidden states of an overflowing row become NaN and nothing is overwritten.
        """
        B, T = tokens_BT.shape
        if self.spec.max_seq_len < T:
            raise ValueError(f"{T} tokens: the model sees {self.spec.max_seq_len} at most")
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones((B, T), jnp.int32)
        if cache is None:
            if positions_BT is None:
                positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
            x_BTD = self.embed(tokens_BT, positions_BT)
            if embedding_noise_BTD is not None:
                x_BTD += embedding_noise_BTD.astype(x_BTD.dtype)
            index = TokenIndex(segment_ids_BT, positions_BT, ends_BT)
            return self._trunk(x_BTD, index, dropout_keys_B), None
        if positions_BT is not None:
            raise ValueError(
                "positions_BT: with a cache they follow from its lengths; leave it out"
            )
        for name, value in (
            ("embedding_noise_BTD", embedding_noise_BTD),
            ("ends_BT", ends_BT),
        ):
            if value is not None:
                raise ValueError(f"{name}: for whole rows, not with a cache; leave it out")
        return self._cached_trunk(tokens_BT, segment_ids_BT, cache, leaders)

    def _trunk(
        self,
        x_BTD: Float[Array, "B T D"],
        index: TokenIndex,
        dropout_keys_B: Key[Array, " B"] | None,
    ) -> Float[Array, "B T D"]:
        extras = self.block_arguments(index.positions)

        def attend(q: Array, k: Array, v: Array) -> Array:
            if self.mesh is not None:
                # As kernels ask for it: queries, keys and values placed alike.
                place = heads_sharding(self.mesh, self.spec.kv_heads)
                q, k, v = jax.lax.with_sharding_constraint((q, k, v), place)
            return self.attention(q, k, v, index)

        if self.mesh is not None:
            x_BTD = jax.lax.with_sharding_constraint(x_BTD, rows_sharding(self.mesh))
        x_BTD = self.embedding_dropout(x_BTD, dropout_keys_B)
        for block in self.blocks:

            def apply(x: Array, block: Any = block) -> Array:
                return block(x, attend, dropout_keys_B=dropout_keys_B, **extras)

            x_BTD = _rematerialised(apply, self.remat)(x_BTD)
        return self.final_norm(x_BTD)

    def embedding_dropout(
        self, x_BTD: Float[Array, "B T D"], keys_B: Key[Array, " B"] | None
    ) -> Float[Array, "B T D"]:
        """Dropout after the embedding, for models that have it."""
        del keys_B
        return x_BTD

    def _cached_trunk(
        self,
        tokens_BT: Int[Array, "B T"],
        segment_ids_BT: Int[Array, "B T"],
        cache: KVCache,
        leaders: Leaders | None,
    ) -> tuple[Float[Array, "W T D"], KVCache]:
        new_BT: Bool[Array, "B T"] = segment_ids_BT > 0
        slots_BT = cache.lengths_B[:, None] + jnp.cumsum(new_BT, axis=1, dtype=jnp.int32) - 1
        lengths_B = cache.lengths_B + new_BT.sum(axis=1, dtype=jnp.int32)
        # Padding goes nowhere: a slot beyond the capacity is dropped by `write`.
        write_slots_BT = jnp.where(new_BT, slots_BT, cache.capacity)
        positions_BT = jnp.where(new_BT, slots_BT, 0)

        def led(x_B: Array) -> Array:
            """Of all rows: those that go through the model."""
            return x_B if leaders is None else x_B[leaders.rows_W]

        def followed(x_W: Array) -> Array:
            """Of those that go through the model: what it is for all rows."""
            return x_W if leaders is None else x_W[leaders.of_B]

        slots_S = jnp.arange(cache.capacity, dtype=jnp.int32)
        queries = TokenIndex(new_BT.astype(jnp.int32), positions_BT)
        keys = TokenIndex(
            (slots_S < lengths_B[:, None]).astype(jnp.int32),
            jnp.broadcast_to(slots_S, (len(tokens_BT), cache.capacity)),
        )
        queries, keys = jax.tree.map(led, (queries, keys))
        tokens_WT, positions_WT = led(tokens_BT), led(positions_BT)
        extras = self.block_arguments(positions_WT)
        new_keys: list[Array] = []
        new_values: list[Array] = []
        x_WTD = self.embed(tokens_WT, positions_WT)
        for block, old_k, old_v in zip(self.blocks, cache.keys, cache.values, strict=True):

            def attend(
                q: Array, k: Array, v: Array, old_k: Array = old_k, old_v: Array = old_v
            ) -> Array:
                k, v = write(old_k, old_v, followed(k), followed(v), write_slots_BT)
                new_keys.append(k)
                new_values.append(v)
                return attention_to_cache(q, led(k), led(v), queries, keys)

            x_WTD = block(x_WTD, attend, dropout_keys_B=None, **extras)
        hidden_WTD = self.final_norm(x_WTD)
        cache = KVCache(tuple(new_keys), tuple(new_values), lengths_B)
        overflowed_B = cache.overflowed_B()
        if not isinstance(overflowed_B, jax.core.Tracer):
            cache.check()
        return jnp.where(led(overflowed_B)[:, None, None], jnp.nan, hidden_WTD), cache


def _rematerialised(apply: Callable[[Array], Array], policy: str) -> Callable[[Array], Array]:
    """Choose what the backward pass recomputes instead of keeping."""
    if policy == "block":
        return jax.checkpoint(apply)
    if policy == "dots":
        return jax.checkpoint(
            apply, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        )
    return apply
