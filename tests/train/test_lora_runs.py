"""Whole runs with adapters: the base stays, resuming is exact, what comes out is a plain model."""

import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from run_folders import assert_same_run
from safetensors.numpy import load_file

import llm
from llm.core.spec import RefusedError, spec_from_json
from llm.hub.checkpoints import checkpoint_folder, read_checkpoint_meta
from llm.hub.own_run import open_run
from llm.hub.peft_folder import adapter_config, export_adapter
from llm.models.binding import bind
from llm.models.parameter import named, nested, parameters
from llm.models.specs import GPTSpec, LlamaSpec, LoRASpec
from llm.train.run import run

MODEL = GPTSpec(max_seq_len=64, n_layers=2, d_model=16, n_heads=2)
LORA = LoRASpec(rank=2, dropout=0.1, targets=["qkv", "blocks.1.down"])
IDS = [[1, 2, 3, 4, 5, 6, 7]]


def stored(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Weights, averages and optimizer state of the newest checkpoint, by name."""
    state = (checkpoint_folder(folder) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(state).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = reader.restore(state, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {part: named(restored[part]) for part in ("params", "ema") if restored[part]} | {
        "opt_state": restored["opt_state"]
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture
def base(experiment, folders: Path) -> Path:
    if not (folders / "base").exists():
        run(experiment(model=MODEL), folders / "base")
    return folders / "base"


@pytest.fixture
def tuned_spec(experiment, base: Path):
    return experiment(model=MODEL.replace(lora=LORA), init_from=str(base), seed=3)


@pytest.fixture
def tuned(tuned_spec, folders: Path) -> Path:
    if not (folders / "tuned").exists():
        run(tuned_spec, folders / "tuned")
    return folders / "tuned"


def test_the_base_stays_bit_for_bit(base: Path, tuned: Path) -> None:
    before, after = stored(base)["params"], stored(tuned)
    adapters = {name for name in after["params"] if "lora_" in name}
    assert after["params"].keys() - adapters == before.keys() and len(adapters) == 6
    for name, leaf in before.items():
        np.testing.assert_array_equal(after["params"][name], leaf)
    assert all(np.any(after["params"][name]) for name in adapters)
    shapes = {leaf.shape for leaf in jax.tree.leaves(after["opt_state"]) if leaf.ndim}
    assert shapes == {after["params"][name].shape for name in adapters}


def test_resumed_equals_unbroken(tuned_spec, tmp_path: Path) -> None:
    spec = tuned_spec.replace(trainer=tuned_spec.trainer.replace(ema_decay=0.9))
    run(spec, tmp_path / "unbroken")
    shutil.copytree(tmp_path / "unbroken", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "12")  # as after a kill at step 8
    run(spec.replace(resume="true"), tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")
    # What is evaluated and published: averages of the adapters beside the base.
    arrays = stored(tmp_path / "broken")
    assert arrays["ema"].keys() == {name for name in arrays["params"] if "lora_" in name}
    averaged = nested({**arrays["params"], **arrays["ema"]})
    expected = unmerged_logits(tmp_path / "broken", averaged)
    got = llm.load(str(tmp_path / "broken")).logits(IDS)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def unmerged_logits(folder: Path, params) -> np.ndarray:
    meta = read_checkpoint_meta(checkpoint_folder(folder))
    model = bind(spec_from_json(meta["model"]), jax.tree.map(jax.numpy.asarray, params))
    return np.asarray(model.logits(model(jax.numpy.array(IDS))[0]))


def test_a_run_opens_as_the_merged_model(base: Path, tuned: Path, tmp_path: Path) -> None:
    lm = llm.load(str(tuned))
    assert lm.spec.lora == LoRASpec()
    expected = unmerged_logits(tuned, nested(stored(tuned)["params"]))
    np.testing.assert_allclose(lm.logits(IDS), expected, atol=1e-5)
    assert np.abs(lm.logits(IDS) - llm.load(str(base)).logits(IDS)).max() > 1e-3
    assert llm.load(str(tuned), dtype="bfloat16").params["embedding"].dtype == "bfloat16"
    llm.save_hf(lm, tmp_path / "hf")
    np.testing.assert_allclose(llm.load(str(tmp_path / "hf")).logits(IDS), expected, atol=1e-5)


def test_a_base_kept_in_bf16(tuned_spec, tmp_path: Path) -> None:
    hardware = tuned_spec.hardware.replace(compute_dtype="bfloat16")
    spec = tuned_spec.replace(hardware=hardware)
    run(spec, tmp_path / "unbroken")
    shutil.copytree(tmp_path / "unbroken", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "12")
    run(spec.replace(resume="true"), tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")
    params = stored(tmp_path / "broken")["params"]
    for name, leaf in params.items():
        kept_in_bf16 = leaf.ndim == 2 and "lora_" not in name
        assert leaf.dtype == ("bfloat16" if kept_in_bf16 else "float32"), name
    # Opened in fp32, the sum of base and adapters is not rounded again.
    widened = nested({name: np.float32(leaf) for name, leaf in params.items()})
    expected = unmerged_logits(tmp_path / "broken", widened)
    np.testing.assert_allclose(llm.load(str(tmp_path / "broken")).logits(IDS), expected, atol=1e-5)


def test_adapters_on_a_run_that_had_some(experiment, tuned: Path, tmp_path: Path) -> None:
    lora = LoRASpec(rank=3, targets=["up"])
    run(experiment(model=MODEL.replace(lora=lora), init_from=str(tuned)), tmp_path / "again")
    before, after = named(llm.load(str(tuned)).params), stored(tmp_path / "again")["params"]
    assert after.keys() - before.keys() == {f"blocks.{i}.up.lora_{x}" for i in (0, 1) for x in "ab"}
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf)


def test_frozen_by_pattern(experiment, base: Path, tmp_path: Path) -> None:
    freeze = ["embedding", "blocks.0"]
    run(experiment(model=MODEL, init_from=str(base), trainer={"freeze": freeze}), tmp_path / "run")
    before, after = stored(base)["params"], stored(tmp_path / "run")["params"]
    for name, leaf in before.items():
        frozen = name == "embedding" or name.startswith("blocks.0.")
        assert np.array_equal(after[name], leaf) == frozen, name


def test_peft_files(base: Path, tuned: Path, tmp_path: Path) -> None:
    """The base and the two matrices of each tensor pair, by hand, are the merged model."""
    checkpoint = checkpoint_folder(tuned)
    config = export_adapter(open_run(checkpoint, "tuned"), tmp_path / "adapter")
    assert config == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
        "base_model_name_or_path": str(checkpoint_folder(base)),
        "r": 2, "lora_alpha": 16, "use_rslora": False, "lora_dropout": 0.1,
        "target_modules": ["c_attn", "transformer.h.1.mlp.c_proj"], "fan_in_fan_out": True,
        "bias": "none", "modules_to_save": None, "init_lora_weights": True,
    }  # fmt: skip
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert files - tokenizer == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert 'library_name: "peft"' in card and "rank 2, alpha 16" in card
    assert "| eval/loss | final |" in card  # what the run measured
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 6
    start = "base_model.model.transformer.h"
    assert tensors[f"{start}.1.mlp.c_proj.lora_A.weight"].shape == (2, 64)
    assert tensors[f"{start}.1.mlp.c_proj.lora_B.weight"].shape == (16, 2)
    here, merged = named(llm.load(str(base)).params), named(llm.load(str(tuned)).params)
    ours = {"0.attn.c_attn": "0.qkv", "1.attn.c_attn": "1.qkv", "1.mlp.c_proj": "1.down"}
    for theirs, name in ours.items():
        a, b = (tensors[f"{start}.{theirs}.lora_{x}.weight"] for x in "AB")
        expected = here[f"blocks.{name}.kernel"] + 8 * (b @ a).T
        np.testing.assert_allclose(merged[f"blocks.{name}.kernel"], expected, atol=1e-6)
    with pytest.raises(RefusedError, match="not empty"):
        export_adapter(open_run(checkpoint, "tuned"), tmp_path / "adapter")


def test_adapters_that_peft_cannot_have_are_refused(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    plain = open_run(checkpoint_folder(base), "base")
    with pytest.raises(RefusedError, match=r"checkpoint=base: was trained without adapters"):
        export_adapter(plain, tmp_path / "x")
    llm.save_hf(llm.load(str(base)), tmp_path / "hf")
    elsewhere = llm.load(str(tmp_path / "hf")).pretrained
    with pytest.raises(RefusedError, match=r"takes a run of ours with adapters"):
        export_adapter(elsewhere, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_names_of_modules_in_peft() -> None:
    def targets(**settings) -> list[str]:
        lora = LoRASpec(rank=4, **settings)
        shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_size": 300}
        model = LlamaSpec(**shape, n_kv_heads=1, d_mlp=24, lora=lora)
        return adapter_config(model, {})["target_modules"]

    every = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert targets() == every
    assert targets(targets=["query", "value"]) == ["q_proj", "v_proj"]
    assert targets(targets=["query", "blocks.1.up"]) == ["model.layers.1.mlp.up_proj", "q_proj"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # by PEFT's call
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_peft_computes_the_same(name: str, experiment, tmp_path: Path) -> None:
    """Ours merged, and transformers' base with PEFT's adapters."""
    import peft
    import torch
    import transformers

    llama = LlamaSpec(max_seq_len=64, n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, d_mlp=24)
    model = {"gpt": MODEL, "llama": llama}[name]
    run(experiment(model=model), tmp_path / "base")
    lora = LoRASpec(
        rank=3, alpha=5.5, rslora=True, targets=["*"] if name == "gpt" else ["query", "down"]
    )
    tuned = experiment(model=model.replace(lora=lora), init_from=str(tmp_path / "base"))
    run(tuned, tmp_path / "tuned")
    llm.save_hf(llm.load(str(tmp_path / "base")), tmp_path / "hf")
    lm = llm.load(str(tmp_path / "tuned"))
    export_adapter(lm.pretrained, tmp_path / "adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        got = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(got, lm.logits(IDS), atol=1e-4, rtol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer("def f", add_special_tokens=False).input_ids == lm.tokenizer.encode("def f")
    assert np.abs(got - llm.load(str(tmp_path / "base")).logits(IDS)).max() > 1e-3


def test_a_spec_says_how_many_adapters_are_trained(tuned_spec) -> None:
    model = tuned_spec.model.replace(vocab_size=300)
    leaves = named(jax.eval_shape(lambda: parameters(model.build(jax.random.key(0)))))
    count = sum(leaf.size for name, leaf in leaves.items() if "lora_" in name)
    assert count == 2 * (2 * (16 + 48) + (64 + 16))
