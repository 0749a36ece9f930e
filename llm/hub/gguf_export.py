"""A model as one GGUF file, for llama.cpp and what is built on it.

llama.cpp's converter of Hugging Face folders knows tokenizers by a list, and one that was trained
here is not on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm.core.spec import RefusedError
from llm.hub.gguf_config import LAYER_NORM_EPS, ORIGINAL_LENGTH, RMS_NORM_EPS
from llm.hub.gguf_header import QUANTISATIONS
from llm.hub.gguf_layout import Layout
from llm.hub.gguf_rope import ROPE_DIVISORS
from llm.hub.gguf_tokenizer import tokenizer_metadata
from llm.hub.hf_config import hf_config
from llm.hub.pretrained import Pretrained
from llm.hub.tokenizer_files import plain_template
from llm.hub.weight_names import Weight, weight_table
from llm.hub.weight_table import get, to_stored
from llm.models.rope import rope_frequencies
from llm.models.specs import LlamaSpec, ModelSpec, RopeScalingSpec

# Of the matrices, in llama.cpp's names -> its number for a file of them. Vectors are always F32.
KINDS = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_TYPES = {name: number for number, (name, _, _) in QUANTISATIONS.items()}


def write_gguf(pretrained: Pretrained, params: Any, path: Path, *, kind: str) -> None:
    """Write the file.

    Args:
        pretrained: what belongs to the weights.
        params: the weights, a nested dict of arrays; not changed.
        path: of the file, which must not be there.
        kind: type of the matrices, one of `KINDS`.

    Raises:
        RefusedError: llama.cpp has no such model, tokenizer, or matrices of this width.
    """
    import gguf

    spec = pretrained.spec
    config = hf_config(spec, dtype="float32")
    layout = Layout.of(config)
    writer: Any = gguf.GGUFWriter(path, config["model_type"])
    writer.add_file_type(KINDS[kind])
    if isinstance(name := pretrained.lineage.get("name"), str):
        writer.add_name(name)
    if isinstance(licence := pretrained.lineage.get("licence"), str):
        writer.add_license(licence)
    for key, value in _model_metadata(spec, config).items():
        _add(writer, f"{config['model_type']}.{key}", value)
    text = tokenizer_metadata(pretrained.tokenizer, pretrained.end_ids, spec.vocab)
    for key, value in text.items():
        _add(writer, key, value)
    if pretrained.chat_template is not None:
        writer.add_chat_template(plain_template(pretrained.chat_template))
    divisors = _rope_divisors(spec)
    table = weight_table(spec)
    if divisors is not None:
        writer.add_tensor_info(ROPE_DIVISORS, divisors.shape, divisors.dtype, divisors.nbytes)
    for weight in table:
        shape = layout.shape(weight.name, weight.stored_shape)
        of_weight = _type(kind, shape)
        _, values, size = QUANTISATIONS[of_weight]
        if shape[-1] % values:
            raise RefusedError(
                f"gguf={kind}: {weight.name} has rows of {shape[-1]} numbers, which is no multiple "
                f"of {values}; take F16 or BF16"
            )
        n_bytes = math.prod(shape) // values * size
        name = layout.gguf_name(weight.name)
        dtype = gguf.GGMLQuantizationType(of_weight)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, dtype)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors)
        for weight in table:
            writer.write_tensor_data(_stored(weight, params, layout, kind))
    finally:
        writer.close()


def _stored(weight: Weight, params: Any, layout: Layout, kind: str) -> np.ndarray:
    """The numbers of one weight, or the bytes that stand for them."""
    import gguf

    values = to_stored(get(params, weight.path), transposed=weight.transposed)
    values = layout.to_gguf(weight.name, values).astype(np.float32, copy=False)
    kind_of_weight = gguf.GGMLQuantizationType(_type(kind, values.shape))
    quantised: np.ndarray = gguf.quants.quantize(np.ascontiguousarray(values), kind_of_weight)
    return quantised


def _type(kind: str, shape: tuple[int, ...]) -> int:
    return _TYPES[kind if len(shape) > 1 else "F32"]


def _model_metadata(spec: ModelSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `llm.hub.gguf_config.hf_config`.

    Raises:
        RefusedError: llama.cpp computes this architecture with another activation.
    """
    if not isinstance(spec, LlamaSpec):
        _demand_activation(config, "activation_function", "gelu_new")
        return {
            "block_count": config["n_layer"],
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "feed_forward_length": config["n_inner"],
            "attention.head_count": config["n_head"],
            LAYER_NORM_EPS: config["layer_norm_epsilon"],
        }
    _demand_activation(config, "hidden_act", "silu")
    found: dict[str, Any] = {
        "block_count": spec.n_layers,
        "context_length": spec.max_seq_len,
        "embedding_length": spec.d_model,
        "feed_forward_length": spec.d_mlp,
        "attention.head_count": spec.n_heads,
        "attention.head_count_kv": spec.n_kv_heads,
        "attention.key_length": spec.head_size,
        "attention.value_length": spec.head_size,
        RMS_NORM_EPS: spec.norm_eps,
        "rope.freq_base": spec.rope_theta,
        "rope.dimension_count": spec.head_size,
        "vocab_size": spec.vocab,
    }
    scaling = spec.rope_scaling
    if scaling.type == "llama3" and scaling.factor != 1:
        # llama.cpp needs the divisors only. A reader that wants the formula again needs this.
        found |= {ORIGINAL_LENGTH: scaling.original_max_seq_len}
    elif scaling.factor != 1:
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    return found


def _demand_activation(config: Mapping[str, Any], key: str, expected: str) -> None:
    if config[key] != expected:
        raise RefusedError(
            f"gguf: llama.cpp's {config['model_type']} computes with {key}={expected}, and this "
            f"model with {config[key]}"
        )


def _rope_divisors(spec: ModelSpec) -> np.ndarray | None:
    """What each pair's rotary frequency is divided by; None if the metadata says enough."""
    if not isinstance(spec, LlamaSpec):
        return None
    scaling = spec.rope_scaling
    if scaling.type == "linear" or scaling.factor == 1:
        return None
    plain, scaled = (
        rope_frequencies(spec.head_size, spec.rope_theta, s) for s in (RopeScalingSpec(), scaling)
    )
    divisors: np.ndarray = (plain / scaled).astype(np.float32)
    return divisors


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
