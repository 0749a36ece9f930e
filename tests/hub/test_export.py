"""Models out: what we export, transformers and we ourselves read back as the same model."""

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from hf_models import (
    SPECS,
    gpt,
    llama,
    load,
    logits,
    random_params,
    template,
    tokenizer,
    torch_logits,
)  # fmt: skip
from safetensors.numpy import load_file

from llm.core.spec import RefusedError
from llm.hub import certificate
from llm.hub.export import export
from llm.hub.hf_config import hf_config
from llm.hub.hf_folder import open_hf_folder
from llm.hub.pretrained import Pretrained
from llm.hub.tokenizer_files import plain_template
from llm.hub.weight_table import hf_tensors
from llm.models.specs import ModelSpec

TEMPLATE = (
    "{% for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}<|im_start|>{%- generation -%} {{ message.content }}"
    "{% endgeneration %}\n"
    "{%- else %}<|im_start|>{{ message.role }}: {{ message.content }}\n{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def pretrained_of(spec: ModelSpec, **changes) -> Pretrained:
    return Pretrained(
        source="test", spec=spec, tokenizer=tokenizer(), weights=lambda _: None, **changes
    )


@pytest.mark.parametrize("name", SPECS)
def test_transformers_computes_the_same_from_it(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("llm.hub.export.certify", lambda *_, **__: FAKE)
    spec = SPECS[name]
    params = random_params(spec)
    export(pretrained_of(spec), params, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = logits(spec, params)
    np.testing.assert_allclose(torch_logits(model.eval()), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("shard", [2**30, 20_000])
def test_in_is_out_bit_for_bit(name: str, shard: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("llm.hub.export.certify", lambda *_, **__: FAKE)
    spec = SPECS[name]
    params = random_params(spec)
    export(pretrained_of(spec), params, tmp_path / "a", max_shard_bytes=shard)
    files = list((tmp_path / "a").glob("model*.safetensors"))
    assert (len(files) > 3) == (shard == 20_000)
    if shard == 20_000:
        largest = max(x.nbytes for x in jax.tree.leaves(params))
        assert max(file.stat().st_size for file in files) < max(shard, largest) + 4096
    pretrained, again = load(tmp_path / "a")
    renamed = spec.replace(name=pretrained.spec.name)
    if hasattr(spec, "head_dim"):
        renamed = renamed.replace(head_dim=spec.head_size)
    assert pretrained.spec == renamed
    assert pretrained.tokenizer.fingerprint == tokenizer().fingerprint
    assert jax.tree.structure(params) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))
    tensors = dict(hf_tensors(spec, params))
    stored = {name: array for file in files for name, array in load_file(file).items()}
    assert tensors.keys() == stored.keys()
    assert all(np.array_equal(tensors[name], stored[name]) for name in tensors)


FAKE = {
    "parameters": 1, "dtype": "float32", "tensors": [],
    "logits": {
        "read_back": {"max_difference": 0.0, "greedy_agreement": 1.0}, "transformers": None,
        "positions": 1, "largest_logit": 1.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a chat template, from a run with a result."""
    run = tmp_path_factory.mktemp("run")
    (run / "result.json").write_text(json.dumps({
        "status": "finished",
        "final": {"eval/loss": 1.25, "perf/mfu": 0.5},
        "best": {"eval/loss": {"value": 1.125, "step": 3}},
    }))  # fmt: skip
    (run / "run.json").write_text(json.dumps({"specs": {"data": {"source": "stdlib"}}}))
    folder = tmp_path_factory.mktemp("exported") / "deep" / "model"
    ends = (tokenizer().special_ids["<|im_end|>"], tokenizer().separator_id)
    lineage = {"run": str(run), "step": 3, "licence": "mit", "base": "hf:an/ancestor@1"}
    pretrained = pretrained_of(llama(), chat_template=TEMPLATE, stop_ids=ends, lineage=lineage)
    export(pretrained, random_params(llama()), folder)
    return folder


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def test_the_files(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md", "certificate.json", "chat_template.jinja", "config.json",
        "generation_config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert [path.name for path in exported.parent.iterdir()] == ["model"]
    for path in [exported, *exported.iterdir()]:
        assert path.stat().st_mode & stat.S_IROTH  # others may read what is published


def test_configuration_for_every_reader(exported: Path) -> None:
    config = read(exported, "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}
    assert (config["rope_theta"], config["rope_scaling"]) == (10_000.0, None)
    assert config["eos_token_id"] == read(exported, "generation_config.json")["eos_token_id"]
    assert len(config["eos_token_id"]) == 2
    scaled = hf_config(SPECS["llama3 of 8"], dtype="bfloat16")
    assert scaled["rope_scaling"] | {"rope_theta": 500_000.0} == scaled["rope_parameters"]
    tokens = read(exported, "tokenizer_config.json")
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tokens["eos_token"], tokens["bos_token"]) == ("<|im_end|>", "<|endoftext|>")
    assert "generation %}" not in tokens["chat_template"]
    assert tokens["chat_template"] == (exported / "chat_template.jinja").read_text()


def test_transformers_tokenizes_and_chats_alike(exported: Path) -> None:
    theirs, ours = transformers.AutoTokenizer.from_pretrained(exported), tokenizer()
    text = "def f7(self): naïve é 🙂 <|im_end|>"
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text, specials=True)
    assert theirs.decode(ours.encode(text, specials=True)) == text
    assert theirs.eos_token_id == ours.special_ids["<|im_end|>"]
    assert theirs.bos_token_id == ours.start_id
    assert theirs.pad_token_id == ours.separator_id
    assert theirs.pad_token_id == read(exported, "generation_config.json")["pad_token_id"]
    short, long = theirs(["a", "b c d e f"], padding=True)["attention_mask"]
    assert len(short) == len(long) == sum(long) > sum(short)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}]
    marked = theirs.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False)
    assert theirs.apply_chat_template(messages, tokenize=False) == marked
    assert marked.count("<|im_start|>") == 2


@pytest.mark.parametrize("left", ["", "-", "+"])
@pytest.mark.parametrize("right", ["", "-"])
def test_a_template_without_marks_renders_the_same(left: str, right: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    marked = (
        f"{{% for m in messages %}}\n  {{%{left} generation {right}%}}\n {{{{ m.content }}}} \n"
        f"  {{%{left} endgeneration {right}%}}\n  x{{% endfor %}}"
    )
    plain = plain_template(marked)
    assert "generation" not in plain
    chat = [[{"role": "user", "content": "a"}] * 2]
    rendered = [render_jinja_template(chat, chat_template=t)[0] for t in (marked, plain)]
    assert rendered[0] == rendered[1]


def test_the_card_tells_what_is_known_and_its_example_runs(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    for words in [
        'license: "mit"', 'base_model: "an/ancestor"', "| eval/loss | final | 1.25 |",
        "| eval/loss | best | 1.125 |",
        '"source": "stdlib"', "- step: `3`", "Over 640 positions", "transformers 5",
    ]:  # fmt: skip
        assert words in card
    assert "perf/" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("64", "4")
    output = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=exported, capture_output=True, text=True, check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert output.stdout


def test_how_tokens_are_drawn_goes_in_and_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("llm.hub.export.certify", lambda *_, **__: FAKE)
    spec = llama()
    export(pretrained_of(spec), random_params(spec), tmp_path / "in")
    asked = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    path = tmp_path / "in" / "generation_config.json"
    given = json.loads(path.read_text()) | {"max_length": 9}
    for bad in (None, "high", float("nan"), float("inf"), 10**400):
        path.write_text(json.dumps(given | asked | {"repetition_penalty": bad}))
        pretrained = open_hf_folder(tmp_path / "in", "test")
        assert pretrained.sampling == asked
    export(pretrained, random_params(spec), tmp_path / "out")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert asked.items() <= theirs.to_dict().items()


def test_the_certificate_accounts_for_every_tensor(exported: Path) -> None:
    found = read(exported, "certificate.json")
    stored = load_file(exported / "model.safetensors")
    assert {t["name"] for t in found["tensors"]} == stored.keys()
    for tensor in found["tensors"]:
        array = stored[tensor["name"]]
        assert tensor["shape"] == list(array.shape)
        assert tensor["sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
        assert tensor["file"] == "model.safetensors"
    assert found["parameters"] == sum(array.size for array in stored.values())
    assert found["logits"]["positions"] == 640
    theirs = found["logits"]["transformers"]
    assert theirs["version"] == transformers.__version__
    assert theirs["missing_keys"] == theirs["unexpected_keys"] == []
    for reader in (theirs["with_memory"], theirs["with_read_back"]):
        assert 0 < reader["max_difference"] < 1e-4
        assert reader["greedy_agreement"] > 0.99
    assert found["logits"]["read_back"] == {"max_difference": 0.0, "greedy_agreement": 1.0}
    assert found["lineage"]["step"] == 3


def test_bfloat16_says_what_rounding_does(tmp_path: Path) -> None:
    spec = gpt(max_seq_len=100)
    params = random_params(spec)
    found = export(pretrained_of(spec), params, tmp_path / "out", dtype="bfloat16")["logits"]
    assert found["positions"] == 100
    assert 1e-4 < found["read_back"]["max_difference"] < 0.1
    assert found["transformers"]["with_read_back"]["max_difference"] < 1e-4
    assert read(tmp_path / "out", "config.json")["torch_dtype"] == "bfloat16"
    pretrained, again = load(tmp_path / "out")
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(a.astype("bfloat16"), np.float32), b)
    # What is bfloat16 already, comes back as it is.
    half = pretrained.weights(template(pretrained.spec, "bfloat16"))
    found = export(pretrained_of(spec), half, tmp_path / "again", dtype="bfloat16")["logits"]
    assert found["read_back"]["max_difference"] < 1e-5


def test_a_wrong_tensor_on_disk_is_noticed(tmp_path: Path, monkeypatch) -> None:
    def transposed(array, *, transposed: bool) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(array))  # square matrices do not give this away

    monkeypatch.setattr("llm.hub.export.to_stored", transposed)
    spec = llama(n_kv_heads=4, d_mlp=32)
    with pytest.raises(RuntimeError, match=r"our own reader computes something else .*: logits"):
        export(pretrained_of(spec), random_params(spec), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_reading_of_the_config_is_noticed(tmp_path: Path, monkeypatch) -> None:
    original = hf_config
    wrong = {"rms_norm_eps": 0.5}
    monkeypatch.setattr("llm.hub.export.hf_config", lambda *a, **k: {**original(*a, **k), **wrong})
    with pytest.raises(RuntimeError, match="computes something else"):
        export(pretrained_of(llama()), random_params(llama()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_noticed(tmp_path: Path, monkeypatch) -> None:
    original = certificate.certify

    def damage_first(pretrained, params, folder: Path, **rest):
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
        return original(pretrained, params, folder, **rest)

    monkeypatch.setattr("llm.hub.export.certify", damage_first)
    with pytest.raises(RuntimeError, match=r"1 tensors on disk differ from memory, such as mod"):
        export(pretrained_of(llama()), random_params(llama()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (gpt(positions="sinusoidal"), "positions=sinusoidal: transformers' GPT-2 has learned"),
        (llama(out_bias=True), "qkv_bias=False, out_bias=True, mlp_bias=False: transformers has"),
        (llama(qkv_bias=True, mlp_bias=True), "qkv_bias=True, out_bias=False, mlp_bias=True: "),
        (gpt(vocab_size=299), "the tokenizer has 300 tokens, the model vocab_size=299"),
    ],
)
def test_what_transformers_has_no_model_for_is_refused(
    spec: ModelSpec, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=message):
        export(pretrained_of(spec), random_params(spec), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("llm.hub.export.certify", lambda *_, **__: FAKE)
    params = random_params(gpt())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, message in [("full", "not empty"), ("file", "not a folder"), ("link", "not a fold")]:
        with pytest.raises(RefusedError, match=rf"out=.*{name}: {message}"):
            export(pretrained_of(gpt()), params, tmp_path / name)
    with pytest.raises(RefusedError, match="dtype=int8: expected one of float32, bfloat16"):
        export(pretrained_of(gpt()), params, tmp_path / "new", dtype="int8")
    (tmp_path / "empty").mkdir()
    export(pretrained_of(gpt()), params, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()
    assert not list(tmp_path.glob(".*"))


SLOW_EXPORT = """
import sys, time
from pathlib import Path
import jax
import llm.hub.export as module
from llm.data.tokenizer import Tokenizer
from llm.hub.pretrained import Pretrained
from llm.models.parameter import parameters
from llm.models.specs import GPTSpec

def wait(*_, **__):
    print("written", flush=True)
    time.sleep(60)

module.certify = wait
tokenizer = Tokenizer.load(sys.argv[1])
spec = GPTSpec(vocab_size=300, n_layers=1, d_model=16, n_heads=1)
pretrained = Pretrained("x", spec, tokenizer, lambda _: None)
module.export(pretrained, parameters(spec.build(jax.random.key(0))), Path(sys.argv[2]))
"""


def test_killed_half_way_there_is_no_folder(tmp_path: Path) -> None:
    words, out = tmp_path / "tokenizer.json", tmp_path / "parent" / "out"
    words.write_text(tokenizer().to_hf_json())
    command = [sys.executable, "-c", SLOW_EXPORT, str(words), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert [path.name.split("-")[0] for path in out.parent.iterdir()] == [".out.unfinished"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, SystemExit, OSError])
def test_stopped_half_way_nothing_is_left(problem, tmp_path: Path, monkeypatch) -> None:
    def stop(*_, **__) -> None:
        assert list(tmp_path.glob(".*/model.safetensors"))
        raise problem

    monkeypatch.setattr("llm.hub.export.certify", stop)
    with pytest.raises(problem):
        export(pretrained_of(gpt()), random_params(gpt()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
