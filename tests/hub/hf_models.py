"""Small models of transformers, with random weights, in a folder."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from llm.data.bpe import train_bpe
from llm.data.specs import TokenizerSpec
from llm.data.tokenizer import Tokenizer
from llm.hub.hf_folder import open_hf_folder
from llm.hub.pretrained import Pretrained
from llm.models.binding import bind
from llm.models.parameter import parameters
from llm.models.specs import GPTSpec, LlamaSpec, ModelSpec, RopeScalingSpec

VOCAB, TOKENS = 300, 640
COMMON: dict[str, Any] = {"vocab_size": VOCAB, "max_seq_len": TOKENS, "n_layers": 2, "d_model": 32}


def gpt(**changes: Any) -> GPTSpec:
    return GPTSpec(**{**COMMON, "n_heads": 2, **changes})


def llama(**changes: Any) -> LlamaSpec:
    return LlamaSpec(**{**COMMON, "n_heads": 4, "n_kv_heads": 2, "d_mlp": 56, **changes})


def llama3_rope(factor: float) -> RopeScalingSpec:
    return RopeScalingSpec(factor=factor, original_max_seq_len=64)


SPECS: dict[str, ModelSpec] = {
    "gpt": gpt(),
    "gpt, wide, exact gelu": gpt(mlp_ratio=2, activation="gelu", n_heads=4, norm_eps=1e-4),
    "llama": llama(),
    "multi-head, untied": llama(n_kv_heads=4, tied_head=False),
    "one key head": llama(n_kv_heads=1, rope_theta=500_000.0, norm_eps=1e-3),
    "head_dim": llama(head_dim=20, tied_head=False),
    "biases": llama(qkv_bias=True, out_bias=True, mlp_bias=True),
    "qwen2": llama(qkv_bias=True, rope_theta=1_000_000.0),
    "qwen2, untied": llama(qkv_bias=True, tied_head=False),
    "relu": llama(activation="relu"),
    "gelu": llama(activation="gelu", mlp_bias=True),
    "linear": llama(rope_scaling=RopeScalingSpec(type="linear", factor=4.0)),
    "llama3 of 8": llama(head_dim=32, rope_scaling=llama3_rope(8.0), rope_theta=500_000.0),
    "llama3 of 32": llama(head_dim=32, rope_scaling=llama3_rope(32.0), tied_head=False),
    "llama3 qwen2": llama(head_dim=32, rope_scaling=llama3_rope(8.0), qkv_bias=True),
}


@cache
def tokenizer(vocab_size: int = VOCAB) -> Tokenizer:
    texts = [f"def f{i}(self): return {i} + self.x  # naïve é" for i in range(50)]
    return train_bpe(texts, TokenizerSpec(vocab_size=vocab_size))


def add_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer().to_hf_json(), "utf-8")


def write_model(
    config: transformers.PretrainedConfig, folder: Path, **options: Any
) -> transformers.PreTrainedModel:
    """A model of this configuration as transformers saves it, and a tokenizer beside it."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(noise * (0.1 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))
    model.eval().save_pretrained(folder, **options)
    add_tokenizer(folder)
    return model


def small_llama_config(**changes: Any) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**{
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": TOKENS,
        "bos_token_id": 0, "eos_token_id": 0, **changes,
    })  # fmt: skip


def edit_json(path: Path, change: Callable[[dict], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def template(spec: ModelSpec, dtype: str = "float32") -> Any:
    """Where weights shall lie: on the first device."""
    shapes = jax.eval_shape(lambda: parameters(spec.build(jax.random.key(0))))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=here), shapes)


def load(folder: Path, dtype: str = "float32") -> tuple[Pretrained, Any]:
    """A folder as our reader has it."""
    pretrained = open_hf_folder(folder, str(folder))
    return pretrained, pretrained.weights(template(pretrained.spec, dtype))


def random_params(spec: ModelSpec) -> Any:
    """Random everything, norm scales and biases too, so that none of them can be ignored."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
        noise = rng.standard_normal(leaf.shape, np.float32)
        return jax.device_put(noise * (0.1 if leaf.ndim > 1 else 0.2) + (leaf.ndim == 1))

    return jax.tree.map(draw, template(spec))


def ids(length: int = TOKENS, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCAB, (batch, length), np.int32)


def logits(spec: ModelSpec, params: Any) -> np.ndarray:
    def forward(params: Any) -> jax.Array:
        model = bind(spec, params)
        return model.logits(model(jax.numpy.asarray(ids()))[0])

    return np.asarray(jax.jit(forward)(params))


def torch_logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids(), dtype=torch.int64)).logits.float().numpy()
