"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from llm.models.decoder import Decoder
from llm.models.dropout import dropout
from llm.models.linear import Linear
from llm.models.lora import add_adapters
from llm.models.norm import LayerNorm
from llm.models.parameter import normal
from llm.models.specs import GPTSpec

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class GPTBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: GPTSpec, key: jax.Array, layer: int) -> None:
        D, F = spec.d_model, spec.mlp_ratio * spec.d_model
        std = spec.init_std
        # GPT-2 scales what is added to the residual stream by 1 / sqrt(additions).
        residual_std = std / (2 * spec.n_layers) ** 0.5
        keys = jax.random.split(key, 4)
        self.attention_norm = LayerNorm(D, spec.norm_eps)
        self.qkv = Linear(keys[0], D, 3 * D, std=std, axes=("embed", "heads"), bias=True)
        self.out = Linear(keys[1], D, D, std=residual_std, axes=("heads", "embed"), bias=True)
        self.mlp_norm = LayerNorm(D, spec.norm_eps)
        self.up = Linear(keys[2], D, F, std=std, axes=("embed", "mlp"), bias=True)
        self.down = Linear(keys[3], F, D, std=residual_std, axes=("mlp", "embed"), bias=True)
        self.spec = spec
        self.layer = layer

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        attend: Callable[[Array, Array, Array], Array],
        *,
        dropout_keys_B: Key[Array, " B"] | None,
    ) -> Float[Array, "B T D"]:
        """One block; `attend(q_BTNH, k_BTNH, v_BTNH)` is the attention over whatever is visible."""
        B, T, D = x_BTD.shape
        heads = (B, T, self.spec.n_heads, self.spec.head_size)
        rate = self.spec.dropout
        qkv_BTE = self.qkv(self.attention_norm(x_BTD), dropout_keys_B)  # E = 3 D
        q_BTD, k_BTD, v_BTD = jnp.split(qkv_BTE, 3, axis=-1)
        attended_BTNH = attend(q_BTD.reshape(heads), k_BTD.reshape(heads), v_BTD.reshape(heads))
        out_BTD = self.out(attended_BTNH.reshape(B, T, D), dropout_keys_B)
        x_BTD = x_BTD + dropout(out_BTD, rate, dropout_keys_B, 2 * self.layer + 1)
        # Keeping what lies between the activation's input and output costs more memory than
        # computing it again costs time.
        activation = jax.checkpoint(_ACTIVATIONS[self.spec.activation])
        hidden_BTF = activation(self.up(self.mlp_norm(x_BTD), dropout_keys_B))
        down_BTD = self.down(hidden_BTF, dropout_keys_B)
        return x_BTD + dropout(down_BTD, rate, dropout_keys_B, 2 * self.layer + 2)


class GPT(Decoder):
    """GPT-2 with learned or sinusoidal positions and a tied head."""

    spec: GPTSpec

    def __init__(self, spec: GPTSpec, key: jax.Array) -> None:
        super().__init__(spec)
        keys = jax.random.split(key, spec.n_layers + 2)
        self.embedding = normal(
            keys[0], (spec.vocab, spec.d_model), spec.init_std, ("vocab", "embed")
        )
        if spec.positions == "learned":
            shape = (spec.max_seq_len, spec.d_model)
            self.position_embedding = normal(keys[1], shape, spec.init_std, ("positions", "embed"))
        self.blocks = nnx.List(GPTBlock(spec, keys[i + 2], i) for i in range(spec.n_layers))
        self.final_norm = LayerNorm(spec.d_model, spec.norm_eps)
        add_adapters(self, spec, key)

    def embed(  # noqa: D102
        self, tokens_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        x_BTD = self.embedding[...][tokens_BT]
        if self.spec.positions == "learned":
            return x_BTD + self.position_embedding[...][positions_BT].astype(x_BTD.dtype)
        return x_BTD + sinusoids(positions_BT, self.spec.d_model).astype(x_BTD.dtype)

    def embedding_dropout(  # noqa: D102
        self, x_BTD: Float[Array, "B T D"], keys_B: Key[Array, " B"] | None
    ) -> Float[Array, "B T D"]:
        return dropout(x_BTD, self.spec.dropout, keys_B, 0)

    def head_VD(self) -> Float[Array, "V D"]:  # noqa: D102
        return self.embedding[...]

    def block_arguments(self, positions_BT: Int[Array, "B T"]) -> dict[str, Any]:  # noqa: D102
        return {}


def sinusoids(positions_BT: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Fixed position embedding (Vaswani et al. 2017): sines in the first half, cosines after."""
    frequency = 10_000.0 ** -(np.arange(width // 2, dtype=np.float32) / (width // 2))
    angles = positions_BT[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
