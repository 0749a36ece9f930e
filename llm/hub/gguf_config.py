"""The metadata of a GGUF file as Hugging Face's config.json would say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm.core.spec import RefusedError
from llm.hub.gguf_header import TensorInfo
from llm.hub.gguf_rope import ORIGINAL, llama3_scaling

RMS_NORM_EPS = "attention.layer_norm_rms_epsilon"
LAYER_NORM_EPS = "attention.layer_norm_epsilon"
ORIGINAL_LENGTH = "rope.scaling.original_context_length"
_ARCHITECTURES = ("llama", "qwen2", "gpt2")
_LARGEST = 2**31 - 1
# Keys below the architecture's name that are read here, or that say nothing about the computation.
_KNOWN_KEYS = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    RMS_NORM_EPS,
    LAYER_NORM_EPS,
    "attention.causal",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    ORIGINAL_LENGTH,
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "tensor_data_layout",
    "vocab_size",
}


def hf_config(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    rope_divisors: np.ndarray | None,
) -> dict[str, Any]:
    """What config.json would hold.

    Args:
        metadata: of the file, see `llm.hub.gguf_header.Header`.
        tensors: of the file, by their names there.
        rope_divisors: what each pair's rotary frequency is divided by, if the file says so.

    Raises:
        RefusedError: another architecture, a missing or impossible value, or one that this package
            does not compute with.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise RefusedError(
            f"general.architecture={architecture}: expected one of {', '.join(_ARCHITECTURES)}"
        )
    if "token_embd.weight" not in tensors:
        raise RefusedError("token_embd.weight: no such tensor in the file, and it is needed")
    keys = _Keys(architecture, metadata)
    keys.refuse_unknown()
    if architecture == "gpt2":
        return _gpt2(keys, tensors)
    n_heads = keys.whole("attention.head_count")
    d_model = keys.whole("embedding_length")
    head_dim = keys.whole("attention.key_length", d_model // n_heads or 1)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.whole(key, head_dim) != head_dim:
            raise keys.refusal(key, f"the width of a head, {head_dim}")
    theta = keys.number("rope.freq_base", 10_000.0)
    config = {
        "model_type": architecture,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": keys.whole("context_length"),
        "num_hidden_layers": keys.whole("block_count"),
        "hidden_size": d_model,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", n_heads),
        "head_dim": None if head_dim * n_heads == d_model else head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.number(RMS_NORM_EPS),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(keys, rope_divisors, theta, head_dim),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    return config


def _gpt2(keys: _Keys, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "n_positions": keys.whole("context_length"),
        "n_layer": keys.whole("block_count"),
        "n_embd": keys.whole("embedding_length"),
        "n_head": keys.whole("attention.head_count"),
        "n_inner": keys.whole("feed_forward_length"),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": keys.number(LAYER_NORM_EPS),
    }


def _rope_scaling(
    keys: _Keys, divisors: np.ndarray | None, theta: float, head_dim: int
) -> dict[str, Any] | None:
    """From the divisors or from the metadata (linear scaling); None for none."""
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scale_linear") else "none")
    if kind not in ("none", "linear"):
        raise keys.refusal("rope.scaling.type", "none or linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    linear = kind == "linear" and factor != 1
    if divisors is None:
        return {"rope_type": "linear", "factor": factor} if linear else None
    if linear:
        raise keys.refusal("rope.scaling.type", "none in a file with rope_freqs.weight")
    return llama3_scaling(divisors, theta, head_dim, keys.whole(ORIGINAL_LENGTH, ORIGINAL))


class _Keys:
    """The metadata below the architecture's name."""

    def __init__(self, architecture: str, metadata: Mapping[str, Any]) -> None:
        prefix = f"{architecture}."
        self._prefix = prefix
        self._values = {
            key.removeprefix(prefix): value
            for key, value in metadata.items()
            if key.startswith(prefix)
        }

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number from 1."""
        value = self._given(key, default)
        if isinstance(value, list) and value and value == value[:1] * len(value):
            value = value[0]  # one value per block, all equal
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise self.refusal(key, f"a whole number from 1 to {_LARGEST}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._given(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise self.refusal(key, "a number greater than 0")
        # fp32 in the file: 1e-5 would come out as 9.99999974e-06
        return float(f"{value:.7g}")

    def refuse_unknown(self) -> None:
        for key, value in self._values.items():
            if value and key not in _KNOWN_KEYS:
                raise self.refusal(key, "no such key; the model computes something unknown here")
        if self.get("attention.causal", True) is not True:
            raise self.refusal("attention.causal", "true")

    def refusal(self, key: str, expected: str) -> RefusedError:
        return RefusedError(f"{self._prefix}{key}={str(self.get(key))[:80]}: expected {expected}")

    def _given(self, key: str, default: Any) -> Any:
        if key not in self._values and default is None:
            raise RefusedError(f"{self._prefix}{key}: missing from the file, and it is needed")
        return self._values.get(key, default)
