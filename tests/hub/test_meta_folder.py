"""Meta's original folders: against transformers, and damaged ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared_logits import load, logits, their_logits
from small_gguf import random_weights, small_config
from small_meta import N_TOKENS, write_folder

from llm.core.spec import RefusedError
from llm.hub.meta_folder import open_meta
from llm.models.specs import LlamaSpec

IDS_BT = np.random.default_rng(0).integers(0, N_TOKENS, (2, 40))


def by_transformers(
    weights: dict[str, np.ndarray], config: dict[str, Any], rope: dict[str, Any] | None = None
) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab"],
            hidden_size=config["d_model"],
            intermediate_size=config["d_mlp"],
            num_hidden_layers=config["n_layers"],
            num_attention_heads=config["n_heads"],
            num_key_value_heads=config["n_kv_heads"],
            rms_norm_eps=config["eps"],
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": config["theta"]} | (rope or {}),
            tie_word_embeddings=config["tied"],
        )
    )
    missing, _ = model.load_state_dict(
        {name: torch.from_numpy(values) for name, values in weights.items()}, strict=False
    )
    assert missing == (["lm_head.weight"] if config["tied"] else [])
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize(
    ("changes", "n_parts", "embedding_axis", "params"),
    [
        ({}, 1, 0, {}),
        ({}, 2, 0, {}),
        ({}, 2, 1, {}),
        ({"n_kv_heads": 4}, 1, 0, {"n_kv_heads": None}),
        ({"tied": True}, 1, 0, {}),
    ],
)
def test_logits_equal_transformers(
    tmp_path: Path,
    changes: dict[str, Any],
    n_parts: int,
    embedding_axis: int,
    params: dict[str, Any],
) -> None:
    config = small_config(vocab=N_TOKENS, **changes)
    weights = random_weights(config)
    write_folder(
        tmp_path, weights, config, n_parts=n_parts, embedding_axis=embedding_axis, params=params
    )
    ours = open_meta(tmp_path, "meta:x")
    expected = their_logits(by_transformers(weights, config), IDS_BT)
    np.testing.assert_allclose(logits(ours, IDS_BT), expected, rtol=1e-4, atol=1e-4)
    assert ours.spec.vocab == N_TOKENS
    assert ours.lineage["files"] == [f"consolidated.{n:02}.pth" for n in range(n_parts)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    config = small_config(vocab=N_TOKENS)
    weights = random_weights(config)
    write_folder(tmp_path, weights, config, n_parts=2, dtype=dtype)
    rounded = {k: torch.from_numpy(v).to(dtype).float().numpy() for k, v in weights.items()}
    expected = their_logits(by_transformers(rounded, config), IDS_BT)
    ours = logits(open_meta(tmp_path, "meta:x"), IDS_BT)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("params", "factor"), [({}, 32.0), ({"rope_scaling_factor": 8}, 8.0)])
def test_scaled_positions(tmp_path: Path, params: dict[str, Any], factor: float) -> None:
    config = small_config(vocab=N_TOKENS, theta=5e5, head_dim=32, d_model=128, n_layers=1)
    weights = random_weights(config)
    write_folder(tmp_path, weights, config, params={"use_scaled_rope": True} | params)
    rope = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    ids_BT = np.random.default_rng(1).integers(0, N_TOKENS, (1, 600))
    ours = open_meta(tmp_path, "meta:x")
    expected = their_logits(by_transformers(weights, config, rope), ids_BT)
    np.testing.assert_allclose(logits(ours, ids_BT), expected, rtol=2e-3, atol=2e-3)
    assert isinstance(ours.spec, LlamaSpec)
    assert ours.spec.rope_scaling.factor == factor
    assert ours.spec.max_seq_len == 131_072


def test_a_head_that_is_a_copy_of_the_embedding_is_tied(tmp_path: Path) -> None:
    config = small_config(vocab=N_TOKENS)
    weights = random_weights(config)
    assert not open_meta(write_folder(tmp_path, weights, config), "x").spec.to_json()["tied_head"]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    ours = open_meta(write_folder(tmp_path, weights, config), "x")
    assert ours.spec.to_json()["tied_head"]
    load(ours)


@pytest.mark.parametrize(
    ("params", "length"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({}, 4096),
        ({"rope_theta": 500000.0}, 8192),
        ({"rope_theta": 1e6}, 16384),
        ({"max_seq_len": 77}, 77),
    ],
)
def test_context_length(tmp_path: Path, params: dict[str, Any], length: int) -> None:
    config = small_config(vocab=N_TOKENS)
    folder = write_folder(tmp_path, random_weights(config), config, params=params)
    assert open_meta(folder, "x").spec.max_seq_len == length


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def set_params(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        params = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps(params | changes))

    return change


def resave(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = torch.load(folder / "consolidated.00.pth")
        change(state)
        torch.save(state, folder / "consolidated.00.pth")

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("params.json"), "params.json: cannot be read"),
        (remove("consolidated.00.pth"), "no consolidated.00.pth"),
        (remove("tokenizer.model"), "tokenizer.model: cannot be read.*data.tokenizer.path"),
        (set_params(dim="wide"), "dim=wide: expected a whole number"),
        (set_params(n_layers=10**9), "1000000000 layers cannot"),
        (set_params(n_heads=3), "n_heads=3|does not fit|of another shape|must"),
        (set_params(vocab_size=5), "vocab_size=5: tok_embeddings.weight has"),
        (set_params(moe_args={}), "moe_args={}: not known"),
        (set_params(rope_theta=[]), "rope_theta=.*: expected a number"),
        (resave(lambda s: s.pop("norm.weight")), "missing: model.norm.weight"),
        (resave(lambda s: s.pop("tok_embeddings.weight")), "tok_embeddings.weight: no such"),
        (resave(lambda s: s.update(x=torch.ones(3))), "no place for: x"),
        (resave(lambda s: s.update(x=torch.ones(3, dtype=torch.int8))), "CharStorage"),
        (resave(lambda s: s.update(x=torch.ones(3, 4).T)), "strides"),
    ],
)
def test_folders_that_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    config = small_config(vocab=N_TOKENS, n_layers=1)
    damage(write_folder(tmp_path, random_weights(config), config))
    with pytest.raises(RefusedError, match=message):
        open_meta(tmp_path, "meta:x")
