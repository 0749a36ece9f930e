"""config.json of Hugging Face models: from it to a spec, and back.

Reading is strict: what would change the model's results and cannot be represented here is refused
by its key and value. Dropout is not read: it belongs to a training run, not to the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loguru import logger

from llm.core.spec import RefusedError
from llm.hub.hf_rope import read_rope, rope_keys, short
from llm.models.specs import GPTSpec, LlamaSpec, ModelSpec

Config = Mapping[str, Any]

_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
_GPT_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}
_LLAMA_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}

_LARGEST = 2**31 - 1

# Keys that are read below.
_GPT_KEYS = {
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function",
    "layer_norm_epsilon", "initializer_range",
}  # fmt: skip
_LLAMA_KEYS = {
    "vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
    "rms_norm_eps", "initializer_range", "tie_word_embeddings", "attention_bias", "mlp_bias",
    "sliding_window", "rope_theta", "rope_scaling", "rope_parameters",
}  # fmt: skip
# Keys that may only have the values at which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
    "pruned_heads": (None, {}),
    "partial_rotary_factor": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "clip_qkv": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "no_rope_layers": (None, []),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
}
# Keys that say nothing about what is computed from given weights.
_HARMLESS = {
    "architectures", "model_type", "_name_or_path", "transformers_version", "dtype", "torch_dtype",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "decoder_start_token_id", "use_cache", "attention_dropout", "hidden_dropout", "attn_pdrop",
    "embd_pdrop", "resid_pdrop", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "n_ctx",
    "reorder_and_upcast_attn", "pretraining_tp", "max_window_layers", "output_attentions",
    "output_hidden_states", "return_dict", "chunk_size_feed_forward", "id2label", "label2id",
    "problem_type", "is_llama_config", "transformers.js_config", "torchscript",
    "_attn_implementation_autoset", "gradient_checkpointing", "use_bfloat16", "auto_map",
    "finetuning_task", "is_decoder", "prefix", "tokenizer_class", "predict_special_tokens",
}  # fmt: skip


def spec_from_hf_config(config: Config) -> ModelSpec:
    """What the model is made of.

    Args:
        config: content of config.json: GPT-2, Llama, Mistral without a sliding window, or Qwen2.

    Raises:
        RefusedError: another architecture, a missing key, or a value that cannot be represented.
    """
    kind = _model_type(config)
    for key, values in _NEUTRAL.items():
        if key in config and config[key] not in values:
            raise _refusal(config, key, f"only {_either(values)} can be represented here")
    read = _GPT_KEYS | {"tie_word_embeddings"} if kind == "gpt2" else _LLAMA_KEYS
    known = read | _NEUTRAL.keys() | _HARMLESS | {"layer_types", "original_max_position_embeddings"}
    unknown = sorted(map(str, config.keys() - known))
    if unknown:
        logger.warning(
            "config.json: no {} model is known to use {}; ignored, as transformers ignores them.",
            _ARCHITECTURES[kind], ", ".join(unknown[:20]),
        )  # fmt: skip
    spec = _gpt_spec(config) if kind == "gpt2" else _llama_spec(config, kind)
    layer_types = config.get("layer_types")
    if layer_types is not None and any(t != "full_attention" for t in _list(config, "layer_types")):
        raise _refusal(config, "layer_types", "only full_attention can be represented here")
    return spec


def _gpt_spec(config: Config) -> GPTSpec:
    width = _integer(config, "n_embd")
    inner = _integer(config, "n_inner", 4 * width)
    if inner % width:
        raise _refusal(config, "n_inner", f"expected a multiple of n_embd={width}")
    if config.get("tie_word_embeddings", True) is not True:
        raise _refusal(config, "tie_word_embeddings", "a GPT-2's head is its embedding here")
    return GPTSpec(
        name="gpt2",
        vocab_size=_integer(config, "vocab_size"),
        max_seq_len=_integer(config, "n_positions"),
        n_layers=_integer(config, "n_layer"),
        d_model=width,
        n_heads=_integer(config, "n_head"),
        mlp_ratio=inner // width,
        activation=_choice(config, "activation_function", "gelu_new", _GPT_ACTIVATIONS),
        norm_eps=_number(config, "layer_norm_epsilon", 1e-5),
        init_std=_number(config, "initializer_range", 0.02),
    )


def _llama_spec(config: Config, kind: str) -> LlamaSpec:
    context = _integer(config, "max_position_embeddings")
    heads = _integer(config, "num_attention_heads")
    kv_heads = heads
    if kind != "llama" and "num_key_value_heads" not in config:
        raise RefusedError("config.json: no num_key_value_heads; say how many heads keys have")
    if config.get("num_key_value_heads") is not None:
        kv_heads = _integer(config, "num_key_value_heads")
    window = config.get("sliding_window")
    if kind == "mistral" and window is not None and _integer(config, "sliding_window") < context:
        raise _refusal(
            config, "sliding_window", f"shorter than max_position_embeddings={context}; attention "
            "here sees everything (lower max_position_embeddings to use the model up to there)",
        )  # fmt: skip
    biases = kind == "llama" and _flag(config, "attention_bias", False)
    head_dim = config.get("head_dim")
    theta, scaling = read_rope(config)
    return LlamaSpec(
        name=kind,
        vocab_size=_integer(config, "vocab_size"),
        max_seq_len=context,
        n_layers=_integer(config, "num_hidden_layers"),
        d_model=_integer(config, "hidden_size"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=None if head_dim is None else _integer(config, "head_dim"),
        d_mlp=_integer(config, "intermediate_size"),
        activation=_choice(config, "hidden_act", "silu", _LLAMA_ACTIVATIONS),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        init_std=_number(config, "initializer_range", 0.02),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_head=_flag(config, "tie_word_embeddings", False),
        qkv_bias=biases or kind == "qwen2",
        out_bias=biases,
        mlp_bias=kind == "llama" and _flag(config, "mlp_bias", False),
    )


def hf_config(
    spec: ModelSpec, *, dtype: str, bos_id: int | None = None, eos_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """Content of config.json, for transformers 4 and 5 and what else reads it.

    Args:
        spec: what the model is made of.
        dtype: type of the stored weights, such as `float32`.
        bos_id: token in front of a text.
        eos_ids: tokens that end a text.

    Raises:
        RefusedError: transformers has no model like this one.
    """
    model = _gpt_config(spec) if isinstance(spec, GPTSpec) else _llama_config(spec)
    eos = list(eos_ids)
    return {
        "architectures": [_ARCHITECTURES[model["model_type"]]],
        **model,
        "vocab_size": spec.vocab,
        "initializer_range": spec.init_std,
        "bos_token_id": bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _gpt_config(spec: GPTSpec) -> dict[str, Any]:
    if spec.positions != "learned":
        raise RefusedError(
            f"model.positions={spec.positions}: transformers' GPT-2 has learned positions only; "
            "such a model cannot be exported"
        )
    activations = {ours: theirs for theirs, ours in reversed(_GPT_ACTIVATIONS.items())}
    return {
        "model_type": "gpt2",
        "n_positions": spec.max_seq_len,
        "n_ctx": spec.max_seq_len,
        "n_embd": spec.d_model,
        "n_layer": spec.n_layers,
        "n_head": spec.n_heads,
        "n_inner": spec.mlp_ratio * spec.d_model,
        "activation_function": activations[spec.activation],
        "layer_norm_epsilon": spec.norm_eps,
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    }


def _llama_config(spec: ModelSpec) -> dict[str, Any]:
    if not isinstance(spec, LlamaSpec):
        raise TypeError(f"{type(spec).__name__}: cannot be exported")
    biases = (spec.qkv_bias, spec.out_bias)
    common = {
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_mlp,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_size,
        "hidden_act": spec.activation,
        "max_position_embeddings": spec.max_seq_len,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied_head,
        "attention_dropout": 0.0,
        **rope_keys(spec),
    }
    if biases[0] == biases[1]:
        llama = {"attention_bias": spec.qkv_bias, "mlp_bias": spec.mlp_bias}
        return {"model_type": "llama", **common, **llama}
    if biases == (True, False) and not spec.mlp_bias:
        window = {"use_sliding_window": False, "sliding_window": None}
        return {"model_type": "qwen2", **common, **window}
    raise RefusedError(
        f"qkv_bias={spec.qkv_bias}, out_bias={spec.out_bias}, mlp_bias={spec.mlp_bias}: "
        "transformers has no model with just these biases. It has Llama (qkv_bias = out_bias) and "
        "Qwen2 (qkv_bias only)"
    )


def _model_type(config: Config) -> str:
    """Key into `_ARCHITECTURES`."""
    kind, named = config.get("model_type"), config.get("architectures")
    if named is None or named == []:
        if not isinstance(kind, str) or kind not in _ARCHITECTURES:
            raise _refusal(config, "model_type", f"expected one of {', '.join(_ARCHITECTURES)}")
        return kind
    for name in _list(config, "architectures"):
        for known, architecture in _ARCHITECTURES.items():
            if name == architecture and kind in (None, known):
                return known
    expected = ", ".join(_ARCHITECTURES.values())
    raise _refusal(config, "architectures", f"model_type={short(kind)}: expected one of {expected}")


def _integer(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        if default is None:
            raise RefusedError(f"config.json: no {key}; expected a whole number")
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST:
        raise _refusal(config, key, f"expected a whole number from 1 to {_LARGEST}")
    return value


def _number(config: Config, key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise _refusal(config, key, "expected a number greater than 0")
    return float(value)


def _flag(config: Config, key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise _refusal(config, key, "expected true or false")
    return value


def _choice(config: Config, key: str, default: str, choices: Mapping[str, str]) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise _refusal(config, key, f"expected one of {', '.join(choices)}")
    return choices[value]


def _list(config: Config, key: str) -> list[Any]:
    value = config.get(key)
    if not isinstance(value, list):
        raise _refusal(config, key, "expected a list")
    return value


def _refusal(config: Config, key: str, reason: str) -> RefusedError:
    return RefusedError(f"config.json: {key}={short(config.get(key))}: {reason}")


def _either(values: Sequence[Any]) -> str:
    return " or ".join("null" if value is None else str(value) for value in values)
