"""What Hugging Face's tensors are called in a GGUF file, and how they stand there.

llama.cpp turns the rows of q and k into its own order for rotary positions (neighbours form a pair,
where this package and Hugging Face pair a row with the one half a head further on), but for llama
only. Matrices are stored [out, in], which Hugging Face's GPT-2 has the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk": "model.layers",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "blk": "transformer.h",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
NAMES = {"gpt2": _GPT2, "llama": _LLAMA, "qwen2": _LLAMA}
"""Of each architecture, the modules by their names in a file; `blk` is the list of blocks."""


@dataclass(frozen=True)
class Layout:
    """The tensors of one model, there and here."""

    modules: Mapping[str, str]
    """One of `NAMES`."""
    transposed: bool
    """The matrices of the blocks are."""
    interleaved: Mapping[str, int]
    """Numbers of heads of the modules whose rows stand in llama.cpp's order."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Layout:
        """For a Hugging Face config of one of the architectures."""
        kind = config["model_type"]
        heads: dict[str, int] = {}
        if kind == "llama":
            heads["self_attn.q_proj"] = config["num_attention_heads"]
            heads["self_attn.k_proj"] = config["num_key_value_heads"]
        return cls(NAMES[kind], kind == "gpt2", heads)

    def hf_name(self, name: str) -> str:
        """Hugging Face's name of a tensor; unknown ones keep theirs."""
        words = name.split(".")
        if len(words) == 2 and words[0] in self.modules:
            return f"{self.modules[words[0]]}.{words[1]}"
        if len(words) == 4 and words[0] == "blk" and words[2] in self.modules:
            return f"{self.modules['blk']}.{words[1]}.{self.modules[words[2]]}.{words[3]}"
        return name

    def gguf_name(self, name: str) -> str:
        """The name in a file of a tensor that Hugging Face calls so."""
        short = {module: key for key, module in self.modules.items()}
        module, _, kind = name.rpartition(".")
        blocks = f"{self.modules['blk']}."
        if not module.startswith(blocks):
            return f"{short[module]}.{kind}"
        number, _, module = module.removeprefix(blocks).partition(".")
        return f"blk.{number}.{short[module]}.{kind}"

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a tensor there, from that here, or the other way round."""
        return shape[::-1] if self._is_transposed(name) else shape

    def to_hf(self, name: str, values: np.ndarray) -> np.ndarray:
        """A tensor, by Hugging Face's name, as it stands in Hugging Face's models."""
        if heads := self._heads(name):
            # [head, half, 2, ...] as llama.cpp orders the rows -> [head, 2, half, ...]
            pairs = values.reshape(heads, -1, 2, *values.shape[1:])
            return pairs.swapaxes(1, 2).reshape(values.shape)
        return values.T if self._is_transposed(name) and values.ndim == 2 else values

    def to_gguf(self, name: str, values: np.ndarray) -> np.ndarray:
        """The opposite of `to_hf`."""
        if heads := self._heads(name):
            halves = values.reshape(heads, 2, -1, *values.shape[1:])
            return halves.swapaxes(1, 2).reshape(values.shape)
        return values.T if self._is_transposed(name) and values.ndim == 2 else values

    def _heads(self, name: str) -> int | None:
        return self.interleaved.get(".".join(name.split(".")[-3:-1]))

    def _is_transposed(self, name: str) -> bool:
        return self.transposed and name.startswith(f"{self.modules['blk']}.")
