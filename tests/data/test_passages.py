from pathlib import Path

import pytest
from data_corpora import random_texts, write_jsonl

from llm.core.spec import RefusedError
from llm.data import passages as module
from llm.data.passages import HeldOut, Passages
from llm.data.pipeline import build_data
from llm.data.sources import open_source
from llm.data.specs import PackedSpec, SourceSpec, TokenizerSpec


@pytest.fixture
def source_of(tmp_path: Path):
    """`source_of(texts)`: a source of them."""

    def make(texts):
        path = write_jsonl(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", texts)
        return open_source(SourceSpec(source="jsonl", path=str(path)), tmp_path)

    return make


def through(sources, fraction, characters=None, weights=None):
    """All passages, and what was held out of them."""
    held_out = HeldOut(sources, fraction)
    passages = Passages(sources, weights or [1.0] * len(sources), characters, held_out)
    return list(passages), held_out.texts(), passages.taken


@pytest.mark.parametrize("count", [2, 3, 40, 400])
def test_nothing_held_out_is_trained_on_and_nothing_is_lost(source_of, count: int) -> None:
    texts = random_texts(count)
    trained, (held_out,), taken = through([source_of(texts)], 0.1)
    assert held_out and trained
    assert sorted([*trained, *held_out]) == sorted(texts)
    assert taken == [sum(map(len, trained))]


def test_held_out_are_the_documents_that_a_run_holds_out(source_of, tmp_path: Path) -> None:
    source = source_of(random_texts(200))
    _, (held_out,), _ = through([source], 0.1)
    spec = PackedSpec(
        source="jsonl", path=source.spec.path, eval_fraction=0.1, cache_dir=str(tmp_path / "c"),
        tokenizer=TokenizerSpec(vocab_size=300), seq_len=64, batch_size=2,
    )  # fmt: skip
    assert build_data(spec, 0).fingerprint["eval"]["documents"] == len(held_out)


def test_of_a_lone_document_the_end_is_held_out(source_of) -> None:
    text = "".join(random_texts(50))
    trained, (held_out,), _ = through([source_of([text])], 0.1)
    assert "".join(trained) + held_out[0] == text
    assert len(held_out[0]) == pytest.approx(len(text) * 0.1, abs=1)


def test_copies_of_a_held_out_document_are_not_trained_on(source_of) -> None:
    texts = random_texts(20)
    _, (held_out,), _ = through([source_of(texts)], 0.1)
    trained, (again, copies), _ = through([source_of(texts), source_of([*held_out, "other"])], 0.1)
    assert again == held_out == copies
    assert not {*held_out} & {*trained}


def test_much_that_is_held_out_is_a_sample(source_of, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts(400)
    _, (everything,), _ = through([source_of(texts)], 0.5)
    monkeypatch.setattr(module, "_HELD_OUT", 5000)
    trained, (some,), _ = through([source_of(texts)], 0.5)
    _, (reverse,), _ = through([source_of(texts[::-1])], 0.5)
    assert some == reverse == everything[: len(some)]
    assert 5000 <= sum(map(len, some)) < 5000 + max(map(len, texts))
    assert not {*trained} & {*everything}


def test_shares_of_a_mixture(source_of) -> None:
    large, small = source_of(random_texts(600)), source_of(random_texts(100, seed=5))
    passages = Passages([large, small], [3.0, 1.0], 20_000)
    total = sum(map(len, passages))
    assert sum(passages.taken) == total
    assert passages.taken[0] / passages.taken[1] == pytest.approx(3, rel=0.15)
    # Without a number: as much as leaves them their shares.
    passages = Passages([large, small], [1.0, 1.0], None)
    assert list(passages)
    assert passages.taken[0] / passages.taken[1] == pytest.approx(1, rel=0.15)
    assert passages.taken[1] == sum(map(len, random_texts(100, seed=5)))


def test_shares_are_of_characters_whatever_bytes_and_records_they_take(tmp_path: Path) -> None:
    sources = []
    for letter in "漢a":
        path = write_jsonl(tmp_path / f"{ord(letter)}.jsonl", [letter * 20_000] * 60)
        spec = SourceSpec(source="jsonl", path=str(path), max_documents=40)
        sources.append(open_source(spec, tmp_path))
    passages = Passages(sources, [1.0, 1.0], 800_000)
    assert list(passages)
    assert passages.taken == pytest.approx([400_000, 400_000], rel=0.1)
    passages = Passages(sources, [1.0, 3.0], None)
    assert list(passages)
    assert passages.taken == pytest.approx([800_000 / 3, 800_000], rel=0.1)


def test_a_mixture_of_unknown_size_needs_a_number(source_of, tmp_path: Path) -> None:
    tasks = open_source(SourceSpec(source="task", path="addition"), tmp_path)
    with pytest.raises(RefusedError, match=r"characters=null: say how many, since task:addition"):
        Passages([source_of(["a"]), tasks], [1.0, 1.0], None)
    assert sum(map(len, Passages([source_of(["ab"]), tasks], [1.0, 1.0], 1000))) > 400


@pytest.mark.parametrize(
    ("content", "left_out"), [(b"", "1 empty"), (b"d\xe9j\xe0", r"1 not UTF-8 \(.*x.txt\)")]
)
def test_nothing_to_read_is_refused(tmp_path: Path, content: bytes, left_out: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    source = open_source(SourceSpec(source="text", path=str(tmp_path / "x.txt")), tmp_path)
    with pytest.raises(RefusedError, match=rf"x\.txt: it holds no text \(left out: {left_out}\)"):
        HeldOut([source], 0.1)
    with pytest.raises(RefusedError, match=rf"x\.txt: it holds no text \(left out: {left_out}\)"):
        list(Passages([source], [1.0], None))
