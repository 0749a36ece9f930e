"""What each of our weights is called in a Hugging Face model: one table per architecture.

The letters of the shapes are those of `llm.models.specs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm.models.specs import GPTSpec, LlamaSpec, ModelSpec

Path = tuple[str | int, ...]
Shape = tuple[int, ...]

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Weight:
    """One weight, here and there."""

    path: Path
    """Keys into the nested dict of `llm.models.parameter.parameters`."""
    name: str
    """Of the tensor, as transformers writes it."""
    shape: Shape
    """Of our array."""
    transposed: bool = False
    """We keep matrices as [in, out]. Llama's are stored [out, in], GPT-2's [in, out]."""

    @property
    def stored_shape(self) -> Shape:
        """Of the tensor."""
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def dotted(self) -> str:
        """Our name for it."""
        return ".".join(map(str, self.path))


def weight_table(spec: ModelSpec) -> list[Weight]:
    """Every weight of the model, in the order of the forward pass."""
    if isinstance(spec, GPTSpec):
        return _gpt(spec)
    if isinstance(spec, LlamaSpec):
        return _llama(spec)
    raise TypeError(f"{type(spec).__name__}: there is no table for it")


def _linear(
    path: Path, name: str, shape: tuple[int, int], *, bias: bool, transposed: bool
) -> list[Weight]:
    """A matrix product with or without bias."""
    weights = [Weight((*path, "kernel"), f"{name}.weight", shape, transposed)]
    return weights + ([Weight((*path, "bias"), f"{name}.bias", shape[1:])] if bias else [])


def _gpt(spec: GPTSpec) -> list[Weight]:
    D, F = spec.d_model, spec.mlp_ratio * spec.d_model
    weights = [Weight(("embedding",), "transformer.wte.weight", (spec.vocab, D))]
    if spec.positions == "learned":
        shape = (spec.max_seq_len, D)
        weights.append(Weight(("position_embedding",), "transformer.wpe.weight", shape))

    def norm(path: Path, name: str) -> list[Weight]:
        parts = [("scale", "weight"), ("bias", "bias")]
        return [Weight((*path, ours), f"{name}.{theirs}", (D,)) for ours, theirs in parts]

    for i in range(spec.n_layers):
        here, there = ("blocks", i), f"transformer.h.{i}"

        def linear(
            ours: str, theirs: str, shape: tuple[int, int], here: Path = here, there: str = there
        ) -> list[Weight]:
            path, name = (*here, ours), f"{there}.{theirs}"
            return _linear(path, name, shape, bias=True, transposed=False)

        weights += norm((*here, "attention_norm"), f"{there}.ln_1")
        weights += linear("qkv", "attn.c_attn", (D, 3 * D))
        weights += linear("out", "attn.c_proj", (D, D))
        weights += norm((*here, "mlp_norm"), f"{there}.ln_2")
        weights += linear("up", "mlp.c_fc", (D, F))
        weights += linear("down", "mlp.c_proj", (F, D))
    return weights + norm(("final_norm",), "transformer.ln_f")


def _llama(spec: LlamaSpec) -> list[Weight]:
    D, F, H = spec.d_model, spec.d_mlp, spec.head_size
    NH, KH = spec.n_heads * H, spec.n_kv_heads * H
    weights = [Weight(("embedding",), "model.embed_tokens.weight", (spec.vocab, D))]
    for i in range(spec.n_layers):
        here, there = ("blocks", i), f"model.layers.{i}"

        def linear(
            ours: str,
            theirs: str,
            shape: tuple[int, int],
            bias: bool,
            here: Path = here,
            there: str = there,
        ) -> list[Weight]:
            path, name = (*here, ours), f"{there}.{theirs}_proj"
            return _linear(path, name, shape, bias=bias, transposed=True)

        name = f"{there}.input_layernorm.weight"
        weights.append(Weight((*here, "attention_norm", "scale"), name, (D,)))
        weights += linear("query", "self_attn.q", (D, NH), spec.qkv_bias)
        weights += linear("key", "self_attn.k", (D, KH), spec.qkv_bias)
        weights += linear("value", "self_attn.v", (D, KH), spec.qkv_bias)
        weights += linear("out", "self_attn.o", (NH, D), spec.out_bias)
        name = f"{there}.post_attention_layernorm.weight"
        weights.append(Weight((*here, "mlp_norm", "scale"), name, (D,)))
        weights += linear("gate", "mlp.gate", (D, F), spec.mlp_bias)
        weights += linear("up", "mlp.up", (D, F), spec.mlp_bias)
        weights += linear("down", "mlp.down", (F, D), spec.mlp_bias)
    weights.append(Weight(("final_norm", "scale"), "model.norm.weight", (D,)))
    if not spec.tied_head:
        weights.append(Weight(("head",), HEAD, (spec.vocab, D)))
    return weights
