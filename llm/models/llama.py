"""Llama (Touvron et al. 2023; Grattafiori et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from llm.models.decoder import Decoder
from llm.models.linear import Linear
from llm.models.lora import add_adapters
from llm.models.norm import RMSNorm
from llm.models.parameter import normal
from llm.models.rope import apply_rope, rope_frequencies, rope_tables
from llm.models.specs import LlamaSpec

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}


class LlamaBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the MLP is gated (Shazeer 2020)."""

    def __init__(self, spec: LlamaSpec, key: jax.Array) -> None:
        D, F, std = spec.d_model, spec.d_mlp, spec.init_std
        q_width = spec.n_heads * spec.head_size
        kv_width = spec.kv_heads * spec.head_size
        keys = jax.random.split(key, 7)

        def linear(i: int, n_in: int, n_out: int, axes: tuple[str, str], *, bias: bool) -> Linear:
            return Linear(keys[i], n_in, n_out, std=std, axes=axes, bias=bias)

        self.attention_norm = RMSNorm(D, spec.norm_eps)
        self.query = linear(0, D, q_width, ("embed", "heads"), bias=spec.qkv_bias)
        self.key = linear(1, D, kv_width, ("embed", "kv_heads"), bias=spec.qkv_bias)
        self.value = linear(2, D, kv_width, ("embed", "kv_heads"), bias=spec.qkv_bias)
        self.out = linear(3, q_width, D, ("heads", "embed"), bias=spec.out_bias)
        self.mlp_norm = RMSNorm(D, spec.norm_eps)
        self.gate = linear(4, D, F, ("embed", "mlp"), bias=spec.mlp_bias)
        self.up = linear(5, D, F, ("embed", "mlp"), bias=spec.mlp_bias)
        self.down = linear(6, F, D, ("mlp", "embed"), bias=spec.mlp_bias)
        self.spec = spec

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        attend: Callable[[Array, Array, Array], Array],
        *,
        dropout_keys_B: Key[Array, " B"] | None,
        rope: tuple[Array, Array],
    ) -> Float[Array, "B T D"]:
        """One block; `attend(q_BTNH, k_BTKH, v_BTKH)` is the attention over what is visible."""
        B, T, _ = x_BTD.shape
        N, K, H = self.spec.n_heads, self.spec.kv_heads, self.spec.head_size
        keys_B = dropout_keys_B
        normed_BTD = self.attention_norm(x_BTD)
        q_BTNH = apply_rope(self.query(normed_BTD, keys_B).reshape(B, T, N, H), rope)
        k_BTKH = apply_rope(self.key(normed_BTD, keys_B).reshape(B, T, K, H), rope)
        v_BTKH = self.value(normed_BTD, keys_B).reshape(B, T, K, H)
        x_BTD = x_BTD + self.out(attend(q_BTNH, k_BTKH, v_BTKH).reshape(B, T, N * H), keys_B)
        normed_BTD = self.mlp_norm(x_BTD)
        activation = _ACTIVATIONS[self.spec.activation]
        # Keeping what lies between the two inputs and their product costs more memory than
        # computing it again costs time.
        gated = jax.checkpoint(lambda gate_BTF, up_BTF: activation(gate_BTF) * up_BTF)
        gate_BTF, up_BTF = self.gate(normed_BTD, keys_B), self.up(normed_BTD, keys_B)
        return x_BTD + self.down(gated(gate_BTF, up_BTF), keys_B)


class Llama(Decoder):
    """Llama with grouped-query attention and a tied or separate head."""

    spec: LlamaSpec

    def __init__(self, spec: LlamaSpec, key: jax.Array) -> None:
        super().__init__(spec)
        keys = jax.random.split(key, spec.n_layers + 2)
        shape = (spec.vocab, spec.d_model)
        self.embedding = normal(keys[0], shape, spec.init_std, ("vocab", "embed"))
        self.blocks = nnx.List(LlamaBlock(spec, keys[i + 2]) for i in range(spec.n_layers))
        self.final_norm = RMSNorm(spec.d_model, spec.norm_eps)
        if not spec.tied_head:
            self.head = normal(keys[1], shape, spec.init_std, ("vocab", "embed"))
        add_adapters(self, spec, key)

    def embed(  # noqa: D102
        self, tokens_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        return self.embedding[...][tokens_BT]

    def head_VD(self) -> Float[Array, "V D"]:  # noqa: D102
        return (self.embedding if self.spec.tied_head else self.head)[...]

    def block_arguments(self, positions_BT: Int[Array, "B T"]) -> dict[str, Any]:  # noqa: D102
        spec = self.spec
        frequencies = rope_frequencies(spec.head_size, spec.rope_theta, spec.rope_scaling)
        return {"rope": rope_tables(positions_BT, frequencies)}
