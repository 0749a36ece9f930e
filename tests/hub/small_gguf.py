"""Small GGUF files with random weights, and what transformers makes of them."""

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

BYTE_CHARS = [
    chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(256, 324)]
]
"""GPT-2's stand-ins for the 256 bytes."""

MERGES = ["Ġ t", "h e", "Ġt he", "i n", "Ġ Ġ", "ĠĠ ĠĠ", "1 2", "e r"]
TOKENS = [*BYTE_CHARS, *(m.replace(" ", "") for m in MERGES)]
TOKENS += ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]
TYPES = [1] * (len(TOKENS) - 4) + [3, 3, 3, 4]


def small_config(**changes: Any) -> dict[str, Any]:
    config = {
        "vocab": len(TOKENS),
        "d_model": 64,
        "d_mlp": 96,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "theta": 10_000.0,
        "eps": 1e-5,
        "tied": False,
    }
    return config | changes


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """fp32 arrays under Hugging Face's names."""
    draw = np.random.default_rng(seed).standard_normal
    d_model, d_mlp = config["d_model"], config["d_mlp"]
    q_width = config["n_heads"] * config["head_dim"]
    kv_width = config["n_kv_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab"], d_model)}
    for block in range(config["n_layers"]):
        shapes |= {
            f"model.layers.{block}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (d_model,),
                "self_attn.q_proj": (q_width, d_model),
                "self_attn.k_proj": (kv_width, d_model),
                "self_attn.v_proj": (kv_width, d_model),
                "self_attn.o_proj": (d_model, q_width),
                "post_attention_layernorm": (d_model,),
                "mlp.gate_proj": (d_mlp, d_model),
                "mlp.up_proj": (d_mlp, d_model),
                "mlp.down_proj": (d_model, d_mlp),
            }.items()
        }
    shapes["model.norm.weight"] = (d_model,)
    if not config["tied"]:
        shapes["lm_head.weight"] = (config["vocab"], d_model)
    weights = {}
    for name, shape in shapes.items():
        values = draw(shape).astype(np.float32)
        weights[name] = 1 + 0.1 * values if "norm" in name else 0.2 * values
    return weights


def interleaved(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k from Hugging Face's order (i with i + half) to llama.cpp's and Meta's."""
    order = np.arange(len(weight)).reshape(n_heads, 2, -1).transpose(0, 2, 1).ravel()
    return weight[order]


_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, block, *part, kind = name.split(".")
    return f"blk.{block}.{_PARTS['.'.join(part)]}.{kind}"


def random_blocks(shape: tuple[int, ...], kind: Type, seed: int) -> np.ndarray:
    """Bytes of a K-quantised matrix, which the gguf library cannot make from numbers."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (shape[0], shape[1] // values, size), dtype=np.uint8)
    scale = np.array([2e-4], np.float16).view(np.uint8)
    if kind == Type.Q4_K:
        blocks[..., 0:2], blocks[..., 2:4] = scale, scale
    else:
        blocks[..., -2:] = np.array([2e-5], np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def write_gguf(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    kind: Type = Type.F32,
    *,
    architecture: str = "llama",
    extra: dict[str, np.ndarray] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write a file as llama.cpp's converter does. `metadata` adds and overrides (None drops)."""
    a = architecture
    entries: dict[str, Any] = {
        f"{a}.block_count": config["n_layers"],
        f"{a}.context_length": 1024,
        f"{a}.embedding_length": config["d_model"],
        f"{a}.feed_forward_length": config["d_mlp"],
        f"{a}.attention.head_count": config["n_heads"],
        f"{a}.attention.head_count_kv": config["n_kv_heads"],
        f"{a}.attention.layer_norm_rms_epsilon": config["eps"],
        f"{a}.rope.freq_base": config["theta"],
        f"{a}.rope.dimension_count": config["head_dim"],
        f"{a}.vocab_size": config["vocab"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": TOKENS.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    } | (metadata or {})
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in entries.items():
        match value:
            case None:
                pass
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
    for number, (name, weight) in enumerate(weights.items()):
        values = weight
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config["n_heads"] if ".q_proj." in name else config["n_kv_heads"]
            values = interleaved(values, heads)
        if values.ndim == 1 or kind == Type.F32:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
        elif kind in (Type.Q4_K, Type.Q6_K):
            writer.add_tensor(
                gguf_name(name), random_blocks(values.shape, kind, number), raw_dtype=kind
            )
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def by_transformers(folder: Path, name: str = "x.gguf") -> Any:
    """What from_pretrained(gguf_file=...) makes, which wants a package that does nothing here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with (
        mock.patch("gguf.GGUFReader", functools.cache(gguf.GGUFReader)),  # slow, and called again
        mock.patch("gguf.get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        no_init_weights(),
    ):
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        read = load_gguf_checkpoint(folder / name, return_tensors=True, model_to_load=model)
    missing, stray = model.load_state_dict(read["tensors"], strict=False)
    assert not stray
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()
