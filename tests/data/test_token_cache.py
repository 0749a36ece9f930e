import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from llm.core.spec import RefusedError
from llm.data.bpe import train_bpe
from llm.data.build_once import build_once
from llm.data.sources import open_source
from llm.data.specs import SourceSpec, TokenizerSpec
from llm.data.token_cache import TokenCache, tokenise


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some words and some more words"] * 9, TokenizerSpec(vocab_size=270))


def source_of(tmp_path, texts):
    root = tmp_path / "texts"
    root.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (root / f"{number:04}.txt").write_text(text, encoding="utf-8", newline="")
    return open_source(SourceSpec(source="text", path=str(root)), tmp_path)


def test_documents_are_kept_exactly(tmp_path, tokenizer):
    texts = ["first", "naïve 数据 🙂\r\n", "<|endoftext|>", " ", "x" * 1000]
    cache = tokenise(source_of(tmp_path, texts), tokenizer, tmp_path)
    assert cache.tokens.dtype == np.uint16
    for number, text in enumerate(texts):
        ids = cache.tokens[cache.offsets[number] : cache.offsets[number + 1]]
        assert ids[0] == ids[-1] == tokenizer.separator_id
        assert ids[1:-1].tolist() == tokenizer.encode(text)
    assert cache.bytes.tolist() == [len(text.encode()) for text in texts]
    assert tokenizer.token_bytes[cache.tokens].sum() == cache.meta["bytes"] == cache.bytes.sum()
    assert len(set(cache.hashes.tolist())) == len(texts)


def test_second_start_reads_the_cache(tmp_path, tokenizer, messages):
    source = source_of(tmp_path, ["one", "two"])
    first = tokenise(source, tokenizer, tmp_path)
    again = tokenise(source, tokenizer, tmp_path)
    assert again.folder == first.folder
    assert sum("tokenised" in line for line in messages) == 1
    copy = pickle.loads(pickle.dumps(again))
    assert isinstance(copy, TokenCache)
    np.testing.assert_array_equal(copy.tokens, first.tokens)
    assert len(pickle.dumps(again)) < 1000


def test_a_damaged_cache_is_built_again(tmp_path, tokenizer, messages):
    source = source_of(tmp_path, ["one", "two"])
    first = tokenise(source, tokenizer, tmp_path)
    expected = np.array(first.tokens)
    os.truncate(first.folder / "tokens.bin", 2)
    np.testing.assert_array_equal(tokenise(source, tokenizer, tmp_path).tokens, expected)
    assert any("damaged" in line for line in messages)


def test_a_source_without_text_is_refused_and_leaves_nothing(tmp_path, tokenizer):
    source = source_of(tmp_path, ["", ""])
    with pytest.raises(RefusedError, match=r"holds no text .left out: 2 empty"):
        tokenise(source, tokenizer, tmp_path / "cache")
    left = [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]
    assert left == []


def test_documents_of_millions_of_characters(tmp_path, tokenizer):
    text = "some words and more " * 400_000 + "a" * 2_000_000
    assert len(text) == 10_000_000
    cache = tokenise(source_of(tmp_path, [text]), tokenizer, tmp_path)
    assert cache.meta["bytes"] == len(text)
    assert tokenizer.token_bytes[cache.tokens].sum() == len(text)


def test_a_tokenizer_that_changes_text_is_reported(tmp_path, tokenizer, messages):
    from tokenizers import normalizers

    from llm.data.tokenizer import Tokenizer

    changed = Tokenizer.from_json(tokenizer.to_json())
    changed._inner.normalizer = normalizers.Strip()
    tokenise(source_of(tmp_path, ["  spaces  "]), changed, tmp_path)
    assert any("does not keep text exactly" in line for line in messages)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from llm.data.build_once import build_once
def build(work):
    (work / "half").write_text("half")
    print("started", flush=True)
    if sys.argv[2] == "die": os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(sys.argv[2]))
    (work / "half").write_text("whole")
build_once(Path(sys.argv[1]), build, lambda folder: (folder / "half").read_text() == "whole")
"""


def start(folder, how):
    command = [sys.executable, "-c", SCRIPT, str(folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_killed_in_the_middle_leaves_no_half(tmp_path):
    folder = tmp_path / "cache" / "abc"
    with start(folder, "die") as process:
        assert process.stdout.read() == "started\n"
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()
    (left,) = folder.parent.glob(".building-*")
    # A build of something else sweeps it away, but not while its builder lives.
    build_once(folder.parent / "other", lambda work: None, lambda folder: True)
    assert not left.exists()
    with start(folder, "1.5") as process:
        assert process.stdout.readline() == "started\n"
        (alive,) = folder.parent.glob(".building-abc*")
        build_once(folder.parent / "third", lambda work: None, lambda folder: True)
        assert alive.exists()
    assert (folder / "half").read_text() == "whole"


def test_two_processes_build_once(tmp_path):
    folder = tmp_path / "abc"
    processes = [start(folder, "0.5") for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(outputs) == ["", "started\n"]
    assert (folder / "half").read_text() == "whole"


def test_without_locks_the_first_rename_wins(tmp_path, monkeypatch):
    import fcntl

    def no_locks(file, how):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    folder = tmp_path / "abc"
    barrier = threading.Barrier(2)

    def build(work):
        barrier.wait(5)
        (work / "file").write_text("whole")

    errors = []

    def run():
        try:
            build_once(folder, build, lambda folder: True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["abc"]


def test_an_interrupted_build_cleans_up(tmp_path):
    def build(work):
        (work / "file").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "abc", build, lambda folder: True)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
