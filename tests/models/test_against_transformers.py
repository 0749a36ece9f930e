"""GPT and Llama compute what transformers' own GPT-2 and Llama compute: logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm.core.spec import RefusedError
from llm.models.binding import bind
from llm.models.parameter import parameters
from llm.models.specs import GPTSpec, LlamaSpec, RopeScalingSpec

VOCAB, TOKENS = 211, 600


def ids(batch: int = 2, length: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (batch, length))


def random_weights(model: torch.nn.Module) -> None:
    """Random everything, norm scales and biases too, so that none of them can be ignored."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(noise * (0.1 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))


def named(model: torch.nn.Module, grad: bool = False) -> dict[str, np.ndarray]:
    return {k: (p.grad if grad else p).detach().numpy() for k, p in model.named_parameters()}


def norm(t: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    parts = {"scale": t[f"{name}.weight"]}
    return parts | ({"bias": t[f"{name}.bias"]} if f"{name}.bias" in t else {})


def gpt_tree(t: dict[str, np.ndarray], layers: int) -> dict:
    def linear(name: str) -> dict:
        return {"kernel": t[f"{name}.weight"], "bias": t[f"{name}.bias"]}

    def block(i: int) -> dict:
        h = f"transformer.h.{i}"
        return {
            "attention_norm": norm(t, f"{h}.ln_1"),
            "qkv": linear(f"{h}.attn.c_attn"),
            "out": linear(f"{h}.attn.c_proj"),
            "mlp_norm": norm(t, f"{h}.ln_2"),
            "up": linear(f"{h}.mlp.c_fc"),
            "down": linear(f"{h}.mlp.c_proj"),
        }

    return {
        "embedding": t["transformer.wte.weight"],
        "position_embedding": t["transformer.wpe.weight"],
        "blocks": {i: block(i) for i in range(layers)},
        "final_norm": norm(t, "transformer.ln_f"),
    }


def llama_tree(t: dict[str, np.ndarray], layers: int) -> dict:
    def linear(name: str) -> dict:
        parts = {"kernel": t[f"{name}.weight"].T}
        return parts | ({"bias": t[f"{name}.bias"]} if f"{name}.bias" in t else {})

    def block(i: int) -> dict:
        h = f"model.layers.{i}"
        return {
            "attention_norm": norm(t, f"{h}.input_layernorm"),
            "query": linear(f"{h}.self_attn.q_proj"),
            "key": linear(f"{h}.self_attn.k_proj"),
            "value": linear(f"{h}.self_attn.v_proj"),
            "out": linear(f"{h}.self_attn.o_proj"),
            "mlp_norm": norm(t, f"{h}.post_attention_layernorm"),
            "gate": linear(f"{h}.mlp.gate_proj"),
            "up": linear(f"{h}.mlp.up_proj"),
            "down": linear(f"{h}.mlp.down_proj"),
        }

    tree = {
        "embedding": t["model.embed_tokens.weight"],
        "blocks": {i: block(i) for i in range(layers)},
        "final_norm": norm(t, "model.norm"),
    }
    return tree | ({"head": t["lm_head.weight"]} if "lm_head.weight" in t else {})


def compare(spec, reference: torch.nn.Module, tree) -> None:
    """Logits within 1e-4 and every gradient within 2e-4 of its own largest entry."""
    random_weights(reference)
    reference.eval()
    tokens = ids()
    labels = torch.tensor(tokens)
    output = reference(labels, labels=labels)
    output.loss.backward()
    params = jax.tree.map(jnp.asarray, tree(named(reference), spec.n_layers))
    fresh = parameters(spec.build(jax.random.key(0)))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)

    def loss(params):
        model = bind(spec, params)
        logits = model.logits(model(jnp.asarray(tokens))[0])
        log_probs = jax.nn.log_softmax(logits[:, :-1])
        picked = jnp.take_along_axis(log_probs, jnp.asarray(tokens)[:, 1:, None], axis=-1)
        return -picked.mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, output.logits.detach().numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(value, output.loss.item(), rtol=1e-5)
    expected = tree(named(reference, grad=True), spec.n_layers)
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(want).max()
        np.testing.assert_allclose(got, want, atol=2e-4 * scale, err_msg=str(path))


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
@pytest.mark.parametrize("heads", [1, 4])
def test_gpt_is_gpt2(activation: str, heads: int) -> None:
    spec = GPTSpec(
        vocab_size=VOCAB, max_seq_len=640, n_layers=2, d_model=32, n_heads=heads,
        activation=activation,
    )  # fmt: skip
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=640, n_embd=32, n_layer=2, n_head=heads,
        activation_function="gelu_new" if activation == "gelu_tanh" else "gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    compare(spec, transformers.GPT2LMHeadModel(config), gpt_tree)


LLAMAS = {
    "multi-head": LlamaSpec(n_heads=4, n_kv_heads=4),
    "grouped": LlamaSpec(n_heads=6, n_kv_heads=2, d_model=48, tied_head=False),
    "one key head": LlamaSpec(n_heads=4, n_kv_heads=1, rope_theta=500_000.0),
    "head_dim": LlamaSpec(n_heads=4, n_kv_heads=2, head_dim=20),
    "relu": LlamaSpec(n_heads=4, n_kv_heads=2, activation="relu", norm_eps=1e-3),
    "gelu": LlamaSpec(n_heads=4, n_kv_heads=2, activation="gelu"),
    "biases": LlamaSpec(n_heads=4, n_kv_heads=2, qkv_bias=True, out_bias=True, mlp_bias=True),
    "scaled rope": LlamaSpec(
        n_heads=4,
        n_kv_heads=2,
        head_dim=32,
        rope_scaling=RopeScalingSpec(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=64
        ),
    ),
    "linear rope": LlamaSpec(
        n_heads=4, n_kv_heads=2, rope_scaling=RopeScalingSpec(type="linear", factor=3.0)
    ),
}


@pytest.mark.parametrize("name", LLAMAS)
def test_llama_is_llama(name: str) -> None:
    spec = LLAMAS[name]
    spec = spec.replace(
        vocab_size=VOCAB, max_seq_len=640, n_layers=2, d_mlp=56,
        d_model=48 if spec.n_heads == 6 else 32,
    )  # fmt: skip
    scaling = spec.rope_scaling
    rope = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if scaling.type == "linear":
        rope |= {"rope_type": "linear", "factor": scaling.factor}
    elif scaling.factor != 1.0:
        rope = {
            "rope_type": "llama3",
            "rope_theta": spec.rope_theta,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=spec.d_model, intermediate_size=spec.d_mlp,
        num_hidden_layers=2, num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads, head_dim=spec.head_size,
        hidden_act=spec.activation, max_position_embeddings=640, rms_norm_eps=spec.norm_eps,
        tie_word_embeddings=spec.tied_head, attention_bias=spec.qkv_bias, mlp_bias=spec.mlp_bias,
        rope_parameters=rope, attn_implementation="eager",
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    compare(spec, transformers.LlamaForCausalLM(config), llama_tree)


def test_linear_scaling_refuses_what_only_llama3_reads() -> None:
    assert RopeScalingSpec(type="linear", factor=2.0).factor == 2.0
    with pytest.raises(RefusedError, match=r"low_freq_factor=2.0: type=linear has no use for it"):
        RopeScalingSpec(type="linear", factor=2.0, low_freq_factor=2.0)


def test_qwen2_biases_only_on_query_key_value() -> None:
    spec = LlamaSpec(
        vocab_size=VOCAB, max_seq_len=640, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2,
        d_mlp=56, qkv_bias=True,
    )  # fmt: skip
    config = transformers.Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=640,
        rms_norm_eps=spec.norm_eps, tie_word_embeddings=True, attn_implementation="eager",
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    compare(spec, transformers.Qwen2ForCausalLM(config), llama_tree)
