"""Key/value cache with a length per row."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llm.models.specs import ModelSpec


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far: slot s of a row holds its token s.

    One array per layer (a stacked array would be copied whole at each update). S is the capacity;
    keys and values stand as the products of attention read them fastest.
    """

    keys: tuple[Float[Array, "B K H S"], ...]
    values: tuple[Float[Array, "B K S H"], ...]
    lengths_B: Int[Array, " B"]

    @classmethod
    def create(
        cls, spec: ModelSpec, batch: int, capacity: int, dtype: jnp.dtype | type = jnp.float32
    ) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        if capacity > spec.max_seq_len:
            raise ValueError(
                f"cache capacity {capacity}: the model sees {spec.max_seq_len} tokens at most"
            )
        B, K, S, H = batch, spec.kv_heads, capacity, spec.head_size
        layers = range(spec.n_layers)
        return cls(
            keys=tuple(jnp.zeros((B, K, H, S), dtype) for _ in layers),
            values=tuple(jnp.zeros((B, K, S, H), dtype) for _ in layers),
            lengths_B=jnp.zeros((B,), jnp.int32),
        )

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return int(self.keys[0].shape[3])

    def overflowed_B(self) -> Bool[Array, " B"]:
        """Rows that were given more tokens than they hold. Their hidden states are NaN."""
        return self.lengths_B > self.capacity

    def check(self) -> None:
        """Raise if a row overflowed (outside jit; inside, the NaN says so)."""
        rows = jnp.flatnonzero(self.overflowed_B()).tolist()
        if rows:
            raise ValueError(
                f"KV cache overflow in rows {rows}: lengths "
                f"{[int(self.lengths_B[row]) for row in rows]} > capacity {self.capacity}"
            )


class Leaders(NamedTuple):
    """Rows of a cache that go through the model for others which hold the same text.

    W of them, as many as the model computes; what stands at those too many is ignored.
    """

    rows_W: Int[Array, " W"]
    """Their rows of the cache."""
    of_B: Int[Array, " B"]
    """Which of the W goes for each row; any, for rows without new tokens."""


def write(
    keys_BKHS: Float[Array, "B K H S"],
    values_BKSH: Float[Array, "B K S H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    slots_BT: Int[Array, "B T"],
) -> tuple[Float[Array, "B K H S"], Float[Array, "B K S H"]]:
    """Store new entries in their slots. A slot at or beyond the capacity is not written at all."""
    rows = jnp.arange(len(slots_BT))[:, None]
    k_BTKH, v_BTKH = k_BTKH.astype(keys_BKHS.dtype), v_BTKH.astype(values_BKSH.dtype)
    return (
        keys_BKHS.at[rows, :, :, slots_BT].set(k_BTKH, mode="drop"),
        values_BKSH.at[rows, :, slots_BT].set(v_BTKH, mode="drop"),
    )
