"""GGUF files that we write: our reader and transformers find the same model in them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_models import SPECS, gpt, llama, logits, random_params, template, tokenizer, torch_logits
from small_gguf import by_transformers
from test_gguf_tokenizer import TEXTS

from llm.core.spec import RefusedError
from llm.data.bpe import train_bpe
from llm.data.specs import TokenizerSpec
from llm.data.tokenizer import Tokenizer
from llm.hub.export import export
from llm.hub.gguf_export import write_gguf
from llm.hub.gguf_file import open_gguf
from llm.hub.gguf_header import read_header
from llm.hub.pretrained import Pretrained
from llm.models.specs import ModelSpec

OTHERS = ("gpt, wide, exact gelu", "relu", "gelu")  # activations that llama.cpp does not have there


TOKENIZER = tokenizer()


def pretrained_of(spec: ModelSpec, tokenizer: Tokenizer = TOKENIZER, **changes) -> Pretrained:
    return Pretrained(
        source="test", spec=spec, tokenizer=tokenizer, weights=lambda _: None, **changes
    )


def written(path: Path, spec: ModelSpec, kind: str = "F32") -> tuple[object, Pretrained, object]:
    """Random weights, and what our reader finds in their file."""
    params = random_params(spec)
    write_gguf(pretrained_of(spec), params, path, kind=kind)
    again = open_gguf(path, f"gguf:{path}")
    return params, again, again.weights(template(again.spec))


@pytest.mark.parametrize("name", [name for name in SPECS if name not in OTHERS])
def test_out_is_in_again_bit_for_bit(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    params, again, back = written(tmp_path / "x.gguf", spec)
    jax.tree.map(np.testing.assert_array_equal, params, back)
    assert type(again.spec) is type(spec)
    np.testing.assert_allclose(logits(again.spec, back), logits(spec, params), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt", "llama", "multi-head, untied", "head_dim", "qwen2"])
def test_transformers_computes_the_same_from_it(name: str, tmp_path: Path) -> None:
    spec = SPECS[name].replace(max_seq_len=1024)  # it does not read a GPT's
    params, _, _ = written(tmp_path / "x.gguf", spec)
    theirs = torch_logits(by_transformers(tmp_path))
    np.testing.assert_allclose(theirs, logits(spec, params), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 8e-3)])
@pytest.mark.parametrize("spec", [gpt(), llama(d_mlp=64)])
def test_other_types(kind: str, error: float, spec: ModelSpec, tmp_path: Path) -> None:
    params, again, back = written(tmp_path / "x.gguf", spec, kind)
    assert set(again.lineage["stored_as"]) == {"F32", kind}
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True):
        if one.ndim == 1:
            np.testing.assert_array_equal(one, other)
        else:
            assert 0 < np.abs(one - other).max() < error * np.abs(one).max()


@pytest.mark.parametrize(
    ("changes", "cut"),
    [
        ({}, "llama-bpe"),
        ({"max_digits": 3}, "llama-bpe"),
        ({"max_digits": 1}, "qwen2"),
        ({"pattern": "gpt2"}, "gpt-2"),
    ],
)
def test_the_tokenizer(tmp_path: Path, changes: dict, cut: str) -> None:
    trained = train_bpe([*TEXTS, "tea 🙂"] * 3, TokenizerSpec(vocab_size=400, **changes))
    ends = (trained.special_ids["<|im_end|>"], trained.separator_id)
    spec = gpt(vocab_size=trained.vocab_size + 5)
    model = pretrained_of(
        spec,
        trained,
        stop_ids=ends,
        lineage={"licence": "mit", "name": "Small"},
        chat_template="{% generation %}{{ messages }}{% endgeneration %}",
    )
    write_gguf(model, random_params(spec), tmp_path / "x.gguf", kind="F32")
    metadata = read_header(tmp_path / "x.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == cut
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert len(metadata["tokenizer.ggml.tokens"]) == spec.vocab
    assert "generation" not in metadata["tokenizer.chat_template"]
    again = open_gguf(tmp_path / "x.gguf", "x")
    for text in TEXTS:
        for specials in (False, True):
            ids = trained.encode(text, specials)
            assert again.tokenizer.encode(text, specials) == ids
            assert again.tokenizer.decode(ids) == trained.decode(ids)
    assert again.stop_ids[: len(ends)] == ends
    assert (again.lineage["licence"], again.lineage["name"]) == ("mit", "Small")
    assert again.tokenizer.separator == trained.separator


def test_smollm2s_way_to_cut(tmp_path: Path) -> None:
    data = json.loads(tokenizer().to_json())
    whole = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    digits = {"type": "Digits", "individual_digits": True}
    data["tokenizer"]["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, whole]}
    cut = Tokenizer.from_json(json.dumps(data))
    write_gguf(pretrained_of(gpt(), cut), random_params(gpt()), tmp_path / "x.gguf", kind="F32")
    assert read_header(tmp_path / "x.gguf").metadata["tokenizer.ggml.pre"] == "smollm"


def test_what_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for name, words in [("relu", "hidden_act=silu"), (OTHERS[0], "activation_function=gelu_new")]:
        with pytest.raises(RefusedError, match=words):
            written(path, SPECS[name])
    with pytest.raises(RefusedError, match=r"rows of 56 numbers.*take F16 or BF16"):
        written(path, llama(), "Q8_0")
    other = train_bpe(TEXTS, TokenizerSpec(vocab_size=300, max_digits=2))
    with pytest.raises(RefusedError, match="how this tokenizer cuts text"):
        write_gguf(pretrained_of(gpt(), other), random_params(gpt()), path, kind="F32")


@pytest.mark.parametrize(("kind", "agreement"), [("F32", 1.0), ("Q8_0", 0.5)])
def test_an_export_with_it(tmp_path: Path, kind: str, agreement: float) -> None:
    spec = llama(d_mlp=64)
    params = random_params(spec)
    certificate = export(pretrained_of(spec), params, tmp_path / "out", gguf=kind)
    found = certificate["logits"]["gguf"]
    assert found["greedy_agreement"] >= agreement
    assert (found["max_difference"] < 1e-4) == (kind == "F32")
    again = open_gguf(tmp_path / "out" / found["file"], "x")
    assert again.lineage["sha256"] == found["sha256"]
    assert "llama-cli -m model.gguf" in (tmp_path / "out" / "README.md").read_text()
