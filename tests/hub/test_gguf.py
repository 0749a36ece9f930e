"""GGUF files: against transformers reading the same file."""

import math
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from compared_logits import load, logits, their_logits
from gguf import GGMLQuantizationType as Type
from small_gguf import TOKENS, TYPES, by_transformers, random_weights, small_config, write_gguf

from llm.hub import gguf_file
from llm.hub.gguf_file import open_gguf
from llm.hub.gguf_header import QUANTISATIONS, read_header
from llm.hub.gguf_layout import NAMES, Layout
from llm.models.specs import LlamaSpec


@pytest.mark.parametrize(
    "kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
)
def test_types_equal_transformers(tmp_path: Path, kind: Type) -> None:
    config = small_config()
    write_gguf(tmp_path / "x.gguf", config, random_weights(config), kind)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )
    assert ours.lineage["stored_as"][kind.name] > 1


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q6_K])
def test_k_quantised_types_equal_transformers(tmp_path: Path, kind: Type) -> None:
    config = small_config(d_model=256, d_mlp=256, head_dim=64, n_layers=1)
    write_gguf(tmp_path / "x.gguf", config, random_weights(config), kind)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "changes",
    [{"tied": True}, {"n_kv_heads": 4}, {"n_kv_heads": 1}, {"theta": 5e5}, {"eps": 1e-2}],
)
def test_shapes_equal_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = small_config(**changes)
    write_gguf(tmp_path / "x.gguf", config, random_weights(config))
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )


def test_head_dim_of_its_own(tmp_path: Path) -> None:
    config = small_config(head_dim=32)
    keys = {"llama.attention.key_length": 32, "llama.attention.value_length": 32}
    write_gguf(tmp_path / "x.gguf", config, random_weights(config), metadata=keys)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )


def test_qwen2_is_not_turned_and_has_biases(tmp_path: Path) -> None:
    config = small_config()
    weights = random_weights(config)
    for block in range(config["n_layers"]):
        for name, heads in {"q": 4, "k": 2, "v": 2}.items():
            bias = np.linspace(-1, 1, heads * 16, dtype=np.float32)
            weights[f"model.layers.{block}.self_attn.{name}_proj.bias"] = bias
    keys = {"tokenizer.ggml.pre": "qwen2"}
    write_gguf(tmp_path / "x.gguf", config, weights, architecture="qwen2", metadata=keys)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )


def test_tensors_are_those_that_were_written(tmp_path: Path) -> None:
    config = small_config()
    weights = random_weights(config)
    path = write_gguf(tmp_path / "x.gguf", config, weights)
    layout = Layout(NAMES["llama"], False, {"self_attn.q_proj": 4, "self_attn.k_proj": 2})
    tensors = gguf_file.GGUFTensors(path, read_header(path).tensors, layout)
    assert tensors.shapes() == {name: values.shape for name, values in weights.items()}
    for name, values in weights.items():
        np.testing.assert_array_equal(tensors.read(name), values)


def llama3_divisors(
    head_dim: int, theta: float, factor: float, low: float, high: float, original: int
) -> np.ndarray:
    """As llama.cpp's converter computes them."""
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(
    ("factor", "low", "high", "original"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 8.0, 2048), (1.0, 1.0, 4.0, 8192)],
)
def test_llama3_scaling_is_recovered(
    tmp_path: Path, factor: float, low: float, high: float, original: int
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = small_config(d_model=128, head_dim=32, theta=5e5, n_layers=1)
    weights = random_weights(config)
    extra = {"rope_freqs.weight": llama3_divisors(32, 5e5, factor, low, high, original)}
    write_gguf(tmp_path / "x.gguf", config, weights, extra=extra)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    assert isinstance(ours.spec, LlamaSpec)
    assert ours.spec.rope_scaling.factor == factor
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab"],
            hidden_size=128,
            intermediate_size=config["d_mlp"],
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=config["eps"],
            max_position_embeddings=2048,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            },
        )
    )
    theirs.load_state_dict({name: torch.from_numpy(v) for name, v in weights.items()})
    ids_BT = np.random.default_rng(1).integers(0, len(TOKENS), (1, 600))
    np.testing.assert_allclose(
        logits(ours, ids_BT), their_logits(theirs.eval(), ids_BT), rtol=2e-3, atol=2e-3
    )


def test_linear_scaling(tmp_path: Path) -> None:
    config = small_config()
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "x.gguf", config, random_weights(config), metadata=keys)
    spec = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf").spec
    assert isinstance(spec, LlamaSpec)
    assert (spec.rope_scaling.type, spec.rope_scaling.factor) == ("linear", 4.0)


def test_what_else_the_file_says(tmp_path: Path) -> None:
    config = small_config()
    keys = {"general.name": "Tiny", "general.license": "mit"}
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), metadata=keys)
    ours = open_gguf(path, "gguf:x.gguf")
    assert ours.source == "gguf:x.gguf"
    assert ours.chat_template == "{{ messages[0]['content'] }}"
    assert ours.stop_ids == (TOKENS.index("<|im_end|>"),)
    assert ours.lineage["sha256"] == gguf_file.sha256_of(path)
    assert (ours.lineage["name"], ours.lineage["licence"]) == ("Tiny", "mit")
    assert ours.spec.max_seq_len == 1024


def test_sizes_of_blocks_are_the_librarys() -> None:
    for number, (name, values, size) in QUANTISATIONS.items():
        assert Type(number).name == name
        assert gguf.GGML_QUANT_SIZES[Type(number)] == (values, size)


def test_large_tensors_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), Type.Q8_0)
    whole = jax.tree.leaves(load(open_gguf(path, "x")))
    monkeypatch.setattr(gguf_file, "_VALUES_AT_ONCE", 256)
    for a, b in zip(jax.tree.leaves(load(open_gguf(path, "x"))), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_types_of_tokens_are_taken_from_the_file(tmp_path: Path) -> None:
    config = small_config()
    types = [*TYPES[:-4], 1, 3, 3, 1]
    path = write_gguf(
        tmp_path / "x.gguf",
        config,
        random_weights(config),
        metadata={"tokenizer.ggml.token_type": types},
    )
    tokenizer = open_gguf(path, "gguf:x.gguf").tokenizer
    assert set(tokenizer.special_ids) == {"<|im_start|>", "<|im_end|>"}
