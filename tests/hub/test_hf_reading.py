"""Hugging Face folders in: what transformers saves is what we read."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_models import (
    SPECS,
    TOKENS,
    VOCAB,
    add_tokenizer,
    edit_json,
    load,
    logits,
    small_llama_config,
    template,
    tokenizer,
    torch_logits,
    write_model,
)  # fmt: skip
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from llm.core.spec import RefusedError
from llm.hub.hf_folder import open_hf_folder
from llm.hub.weight_names import weight_table
from llm.hub.weight_table import get
from llm.models.parameter import parameters

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip

CONFIGS = {
    "llama": small_llama_config,
    "head_dim, biases, tied": lambda: small_llama_config(
        head_dim=24, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "theta": lambda: small_llama_config(
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, hidden_act="gelu"
    ),
    "linear": lambda: small_llama_config(
        rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    ),
    "llama3": lambda: small_llama_config(head_dim=32, rope_parameters=LLAMA3),
    "llama3 of 32": lambda: small_llama_config(
        head_dim=32, rope_parameters={**LLAMA3, "factor": 32.0}
    ),
    "mistral": lambda: transformers.MistralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=TOKENS,
        sliding_window=None,
    ),
    "qwen2": lambda: transformers.Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=TOKENS,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=TOKENS, n_embd=32, n_layer=2, n_head=4, n_inner=96,
        bos_token_id=0, eos_token_id=0,
    ),
    "gpt2, exact gelu": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=TOKENS, n_embd=32, n_layer=2, n_head=2,
        activation_function="gelu", layer_norm_epsilon=1e-3, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = write_model(CONFIGS[name](), tmp_path)
    pretrained, params = load(tmp_path)
    ours = logits(pretrained.spec, params)
    np.testing.assert_allclose(ours, torch_logits(reference), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama as transformers saves it; tests copy it."""
    folder = tmp_path_factory.mktemp("saved")
    write_model(small_llama_config(), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def flat(params) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


@pytest.mark.parametrize("name", SPECS)
def test_the_table_is_the_model(name: str) -> None:
    spec = SPECS[name]
    shapes = jax.eval_shape(lambda: parameters(spec.build(jax.random.key(0))))
    table = weight_table(spec)
    assert len(table) == len(jax.tree.leaves(shapes))
    assert [get(shapes, w.path).shape for w in table] == [w.shape for w in table]
    assert len({w.name for w in table}) == len(table)


def test_shards_and_types(folder: Path) -> None:
    _, whole = load(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    pretrained, shards = load(folder)
    for a, b in zip(flat(whole), flat(shards), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(pretrained.lineage["files"]) > {"config.json", "model-00001-of-00006.safetensors"}
    for dtype in (torch.bfloat16, torch.float16):
        for file in folder.glob("model*"):
            file.unlink()
        copy.deepcopy(model).to(dtype).save_pretrained(folder)
        rounded = [torch.tensor(a).to(dtype).float().numpy() for a in flat(whole)]
        for a, b in zip(rounded, flat(load(folder)[1]), strict=True):
            np.testing.assert_array_equal(a, b)
            assert b.dtype == np.float32


def test_into_bfloat16_and_over_devices(folder: Path) -> None:
    pretrained, whole = load(folder)
    mesh = jax.make_mesh((4,), ("fsdp",))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    place = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16", sharding=split),
        template(pretrained.spec),
    )
    params = pretrained.weights(place)
    assert all(leaf.sharding == split and leaf.dtype == "bfloat16" for leaf in flat_jax(params))
    for a, b in zip(flat(whole), flat(params), strict=True):
        np.testing.assert_array_equal(a.astype(b.dtype), b)


def flat_jax(params) -> list[jax.Array]:
    return jax.tree.leaves(params)


def rename(folder: Path, change) -> None:
    """Rewrite model.safetensors with another set of tensors."""
    file = folder / "model.safetensors"
    save_file(change(dict(load_file(file))), file)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_names_without_prefix_and_known_buffers(kind: str, tmp_path: Path) -> None:
    write_model(CONFIGS[kind](), tmp_path)
    _, expected = load(tmp_path)
    buffers = {
        "llama": ["layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
        "gpt2": ["h.0.attn.bias", "h.1.attn.masked_bias", "transformer.h.1.attn.bias"],
    }[kind]

    def bare(tensors: dict) -> dict:
        new = {k.removeprefix("model.").removeprefix("transformer."): v for k, v in tensors.items()}
        return new | {name: np.ones(3, np.float32) for name in buffers}

    rename(tmp_path, bare)
    for a, b in zip(flat(expected), flat(load(tmp_path)[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_stray_and_misshapen_tensors_are_all_named(folder: Path) -> None:
    def damage(tensors: dict) -> dict:
        del tensors["model.norm.weight"]
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((32, 31), np.float32)
        return tensors | {f"extra.{i}": np.zeros(1, np.float32) for i in range(13)}

    rename(folder, damage)
    with pytest.raises(RefusedError) as error:
        load(folder)
    message = str(error.value)
    for words in [
        "2 tensors missing: model.layers.1.mlp.up_proj.weight [56, 32], model.norm.weight [32];",
        "13 tensors that the model has no place for: extra.0 [1], ",
        " and 3 more; 1 tensors of another shape: ",
        "model.layers.0.self_attn.q_proj.weight [32, 31], expected [32, 32]",
    ]:
        assert words in message


@pytest.mark.parametrize("kind", ["same", "other"])
def test_a_head_stored_although_tied(kind: str, folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(tie_word_embeddings=True))
    if kind == "other":
        with pytest.raises(RefusedError, match=r"lm_head\.weight differs from model\.embed_tokens"):
            load(folder)
        return
    rename(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})
    pretrained, params = load(folder)
    assert pretrained.spec.tied_head
    assert "head" not in params


def test_integers_are_no_weights(folder: Path) -> None:
    rename(folder, lambda t: t | {"model.norm.weight": np.ones(32, np.int32)})
    with pytest.raises(RefusedError, match=r"model\.norm\.weight: stored as I32; expected F32"):
        load(folder)


def test_more_layers_than_tensors_are_refused_at_once(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(num_hidden_layers=2**31 - 1))
    with pytest.raises(RefusedError, match="2147483647 layers cannot be made of 21 tensors"):
        load(folder)


@pytest.mark.parametrize("shard", ["../out.safetensors", "/etc/passwd", "a/b.safetensors", "link"])
def test_an_index_cannot_lead_out_of_its_folder(shard: str, folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    for file in folder.glob("*.*"):
        (inner / file.name).write_bytes(file.read_bytes())
    (inner / "model.safetensors").rename(folder / "out.safetensors")
    names = load_file(folder / "out.safetensors")
    if shard == "link":
        shard = "model-1.safetensors"
        (inner / shard).symlink_to(folder / "out.safetensors")
    index = {"weight_map": dict.fromkeys(names, shard)}
    (inner / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        RefusedError, match=r"without a path|a link out of the folder|the name of a"
    ):
        load(inner)


def test_a_snapshot_of_the_cache_has_its_files_in_blobs(folder: Path) -> None:
    snapshot, blobs = folder / "snapshots" / "0123abc", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(folder.glob("*.*")):
        blob = f"{number:064}"
        (blobs / blob).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    pretrained, _ = load(snapshot)
    assert pretrained.lineage["revision"] == "0123abc"
    assert len(pretrained.lineage["files"]["model.safetensors"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("model.norm.weight"), "such as model.norm.weight: expected in no shard"),
        (lambda m: m.update(x="model.safetensors"), "such as x: expected in model-1.safetensors"),
        (lambda m: m.update({"model.norm.weight": "other.safetensors"}), "names it and it is not"),
        (lambda m: m.update({"model.norm.weight": 5}), "'5': expected the name of a safetensors"),
        (lambda m: m.clear(), "no weight_map"),
    ],
)
def test_an_index_must_be_true(change, message: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    names = dict.fromkeys(load_file(folder / "model-1.safetensors"), "model-1.safetensors")
    change(names)
    names = {k: v.replace("model.s", "model-1.s") if v == "model.safetensors" else v
             for k, v in names.items()}  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(RefusedError, match=message):
        load(folder)


def test_pickles_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RefusedError, match=r"pytorch_model\.bin: pickled weights can run any prog"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(RefusedError, match=r"no weights; expected model\.safetensors or"):
        load(folder)


def test_templates_stop_ids_and_rights(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config = folder / "tokenizer_config.json"
    generation = folder / "generation_config.json"
    for template_json, eos, expected in [
        ("S", 7, ("S", (7,))),
        (named, [2, 1, 2], ("D", (2, 1))),
        (named[:1], None, (None, (0,))),  # config.json says 0
    ]:
        config.write_text(json.dumps({"chat_template": template_json}))
        generation.write_text(json.dumps({"eos_token_id": eos}))
        pretrained = open_hf_folder(folder, "x")
        assert (pretrained.chat_template, pretrained.stop_ids) == expected
    (folder / "chat_template.jinja").write_text("J")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: a/b\n---\nHello")
    pretrained = open_hf_folder(folder, "x")
    assert pretrained.chat_template == "J"
    assert pretrained.lineage["licence"] == "apache-2.0"
    assert pretrained.lineage["parents"] == "a/b"
    generation.write_text('{"eos_token_id": [1, 300]}')
    with pytest.raises(RefusedError, match=r"eos_token_id=300: expected tokens from 0 to 299"):
        open_hf_folder(folder, "x")


def test_a_separator_that_nobody_knows_is_taken_from_eos_token(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<stop>").replace("<|im_end|>", "<>"))
    with pytest.raises(
        RefusedError, match=r"no token known to end a text.*can name a separator as eos_tok"
    ):
        open_hf_folder(folder, "x")
    config = folder / "tokenizer_config.json"
    for eos in ("<stop>", {"content": "<stop>"}):
        config.write_text(json.dumps({"eos_token": eos}))
        assert open_hf_folder(folder, "x").tokenizer.separator == "<stop>"
    config.write_text(json.dumps({"eos_token": "<no>"}))
    with pytest.raises(RefusedError, match="separator=<no>: no such special token"):
        open_hf_folder(folder, "x")


def test_more_tokens_than_embeddings_are_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer(320).to_hf_json())
    with pytest.raises(RefusedError, match=r"tokens up to 319, config\.json vocab_size=300"):
        load(folder)


MEASURE = """
import os, resource, sys
from pathlib import Path
import jax, numpy as np
from llm.hub.hf_folder import open_hf_folder
from llm.models.parameter import parameters
os.environ["JAX_PLATFORMS"] = "cpu"
pretrained = open_hf_folder(Path(sys.argv[1]), "x")
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
shapes = jax.eval_shape(lambda: parameters(pretrained.spec.build(jax.random.key(0))))
place = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32", sharding=here), shapes)
jax.block_until_ready(jax.device_put(np.ones(1000, np.float32), here))
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # forget the highest use so far
def memory(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024
before = memory("VmRSS")
weights = pretrained.weights(place)
jax.block_until_ready(weights)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
print((memory("VmHWM") - before) / size, size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the memory")
@pytest.mark.parametrize(("dtype", "tied"), [("bfloat16", False), ("float32", True)])
def test_reading_needs_little_more_memory_than_the_weights(
    dtype: str, tied: bool, tmp_path: Path
) -> None:
    config = small_llama_config(
        vocab_size=16_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=4,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    add_tokenizer(tmp_path)
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    ratio, size = map(float, output.stdout.split())
    assert size > 80e6
    assert 0.9 < ratio < 1.3
