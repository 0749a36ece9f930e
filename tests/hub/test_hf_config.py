"""config.json: what is read, and that nothing is passed over."""

import json

import pytest
from hf_models import SPECS, llama
from loguru import logger

from llm.core.spec import RefusedError
from llm.hub.hf_config import hf_config, spec_from_hf_config
from llm.models.specs import GPTSpec, LlamaSpec, RopeScalingSpec

LLAMA3 = {
    "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

# As published, shortened by what does not matter.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
    "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True,
    "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
    "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
    "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 22, "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
    "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768,
    "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "embd_pdrop": 0.1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
    "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "task_specific_params": {"text-generation": {"do_sample": True}},
    "vocab_size": 50257,
}  # fmt: skip


def test_published_models() -> None:
    assert spec_from_hf_config(SMOLLM2) == LlamaSpec(
        name="llama", vocab_size=49152, max_seq_len=8192, n_layers=30, d_model=576, n_heads=9,
        n_kv_heads=3, d_mlp=1536, init_std=0.041666666666666664, rope_theta=100_000.0,
    )  # fmt: skip
    assert not spec_from_hf_config(TINYLLAMA).tied_head
    qwen2 = spec_from_hf_config(QWEN2)
    assert (qwen2.qkv_bias, qwen2.out_bias, qwen2.mlp_bias) == (True, False, False)
    assert spec_from_hf_config(MISTRAL).n_kv_heads == 8
    assert spec_from_hf_config(GPT2) == GPTSpec(
        name="gpt2", vocab_size=50257, max_seq_len=1024, n_layers=12, d_model=768, n_heads=12
    )


def test_keys_that_nobody_knows_are_named() -> None:
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    for config in (SMOLLM2, TINYLLAMA, QWEN2, MISTRAL, GPT2):
        spec_from_hf_config(config)
    assert lines == []
    spec_from_hf_config({**SMOLLM2, "surprise": 1})
    logger.remove(handler)
    assert "surprise" in lines[0]


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (GPT2, {"activation_function": "relu"}, "activation_function=relu: expected one of gelu_n"),
        (GPT2, {"n_inner": 1000}, "n_inner=1000: expected a multiple of n_embd=768"),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights=False: only True"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention=True"),
        (GPT2, {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        (GPT2, {"architectures": ["GPT2ForSequenceClassification"]}, "expected one of GPT2LMHead"),
        (GPT2, {"n_layer": None}, "no n_layer; expected a whole number"),
        (GPT2, {"n_layer": 12.0}, "n_layer=12.0: expected a whole number"),
        (GPT2, {"model_type": "llama"}, r"architectures=\['GPT2LMHeadModel'\]: model_type=llama"),
        (SMOLLM2, {"architectures": ["Gemma2ForCausalLM"]}, "Gemma2ForCausalLM"),
        (SMOLLM2, {"architectures": None, "model_type": "phi3"}, "model_type=phi3: expected one"),
        (SMOLLM2, {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act=gelu_pytorch_tanh"),
        (SMOLLM2, {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        (SMOLLM2, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (SMOLLM2, {"rope_interleaved": True}, "rope_interleaved=True: only null or False"),
        (SMOLLM2, {"num_key_value_heads": 2}, "n_kv_heads=2: must divide n_heads=9"),
        (SMOLLM2, {"attention_bias": 1}, "attention_bias=1: expected true or false"),
        (SMOLLM2, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        (SMOLLM2, {"rope_theta": "x"}, "rope_theta=x: expected a number"),
        (MISTRAL, {"sliding_window": 4096}, "sliding_window=4096: shorter than max_position_emb"),
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window=True: only False"),
    ],
)  # fmt: skip
def test_what_cannot_be_represented_is_refused(config: dict, change: dict, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        spec_from_hf_config({**config, **change})


def test_a_window_as_long_as_the_context_changes_nothing() -> None:
    assert spec_from_hf_config({**MISTRAL, "sliding_window": 32768}).max_seq_len == 32768


def without_rope() -> dict:
    return {k: v for k, v in SMOLLM2.items() if k not in ("rope_theta", "rope_scaling")}


@pytest.mark.parametrize(
    ("keys", "theta", "scaling"),
    [
        ({}, 10_000.0, RopeScalingSpec()),
        ({"rope_theta": 5e5}, 5e5, RopeScalingSpec()),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, RopeScalingSpec()),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, 5e5, RopeScalingSpec()),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 1e4,
         RopeScalingSpec(type="linear", factor=2.0)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1e6}}, 1e6,
         RopeScalingSpec(type="linear", factor=4.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 5e5,
         RopeScalingSpec(factor=32.0, original_max_seq_len=8192)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3},
          "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, 5e5,
         RopeScalingSpec(factor=32.0, original_max_seq_len=8192)),
        ({"rope_scaling": {"type": "linear", "factor": 1.0}}, 1e4, RopeScalingSpec()),
    ],
)  # fmt: skip
def test_both_spellings_of_rope(keys: dict, theta: float, scaling: RopeScalingSpec) -> None:
    spec = spec_from_hf_config({**without_rope(), **keys})
    assert (spec.rope_theta, spec.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type=yarn: expect"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type=dynamic"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type=longrope: expected one of"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor: is missing wi"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}}, "beta_fast=32"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor=0.5: expected a number"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "greater"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention="),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, "factor=0.25"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta=10000.0 contrad"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0},
          "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "contradict each other"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3},
          "original_max_position_embeddings": 4096}, "4096 contradicts 8192"),
    ],
)  # fmt: skip
def test_rope_that_cannot_be_represented(keys: dict, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        spec_from_hf_config({**without_rope(), **keys})


def test_specs_survive_the_configuration() -> None:
    for spec in SPECS.values():
        config = json.loads(json.dumps(hf_config(spec, dtype="float32")))
        again = spec_from_hf_config(config)
        same = {"name": spec.name}
        if isinstance(spec, LlamaSpec):
            same["head_dim"] = spec.head_dim
        assert again.replace(**same) == spec


def test_ends_of_texts() -> None:
    assert hf_config(llama(), dtype="float32")["eos_token_id"] is None
    config = hf_config(llama(), dtype="bfloat16", bos_id=1, eos_ids=[2])
    assert (config["bos_token_id"], config["eos_token_id"], config["dtype"]) == (1, 2, "bfloat16")
    assert hf_config(llama(), dtype="float32", eos_ids=[2, 3])["eos_token_id"] == [2, 3]
