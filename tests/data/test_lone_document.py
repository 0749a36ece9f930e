"""The end of a lone document is held out: the same text whatever the tokenizer."""

from pathlib import Path

import pytest
from data_corpora import held_out, random_texts, write_jsonl

from llm.core.spec import RefusedError
from llm.data.bpe import train_bpe
from llm.data.conversations import ChatSettings
from llm.data.lone_document import cut_place
from llm.data.passages import HeldOut, Passages
from llm.data.pipeline import build_data
from llm.data.sources import open_source
from llm.data.specs import PackedSpec, SourceSpec, TokenizerSpec
from llm.data.split import tokenise_and_split

TEXT = "".join(random_texts(60))
SMALL, LARGE = (train_bpe(random_texts(200), TokenizerSpec(vocab_size=n)) for n in (259, 420))


def source_of(tmp_path: Path, texts: list[str], **changes):
    path = write_jsonl(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", texts)
    return open_source(SourceSpec(source="jsonl", path=str(path), **changes), tmp_path / "cache")


def texts_of(caches, side, tokenizer) -> list[list[str]]:
    """What the documents of one side say, whatever they are called."""
    return [
        [
            tokenizer.decode(cache.tokens[start : start + length + 1])
            for start, length in zip(*spans, strict=True)
        ]
        for cache, spans in zip(caches, side, strict=True)
    ]


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.7])
@pytest.mark.parametrize("tokenizer", [SMALL, LARGE])
def test_the_same_text_whatever_the_tokenizer(tmp_path: Path, tokenizer, fraction: float) -> None:
    source = source_of(tmp_path, [TEXT])
    place = round(len(TEXT) * (1 - fraction))
    for _ in range(2):  # the second time all is cached
        caches, split = tokenise_and_split([source], tokenizer, tmp_path / "cache", fraction)
        assert texts_of(caches, split.train, tokenizer) == [[TEXT[:place]]]
        assert texts_of(caches, split.held_out, tokenizer) == [[TEXT[place:]]]
        assert caches[0].bytes.tolist() == [len(t.encode()) for t in (TEXT[:place], TEXT[place:])]
    # A tokenizer that is trained on the same source holds out the same.
    aside = HeldOut([source], fraction)
    assert "".join(Passages([source], [1.0], None, aside)) == TEXT[:place]
    assert aside.texts() == [[TEXT[place:]]]


def test_each_fraction_has_a_cache_of_its_own(tmp_path: Path) -> None:
    sources, folder = [source_of(tmp_path, [TEXT])], tmp_path / "cache"
    names = {tokenise_and_split(sources, SMALL, folder, f)[0][0].fingerprint for f in (0, 0.1, 0.2)}
    assert len(names) == 3


def test_no_copy_of_its_end_is_trained_on(tmp_path: Path) -> None:
    """Three sources of which each needs what it has; the longest text is in two of them."""
    short = "other"
    sources = [source_of(tmp_path, texts) for texts in ([short], [TEXT, TEXT], [short, TEXT])]
    caches, split = tokenise_and_split(sources, SMALL, tmp_path / "cache", 0.2)
    place = cut_place(TEXT, 0.2)
    begin, end = TEXT[:place], TEXT[place:]
    assert texts_of(caches, split.train, SMALL) == [[short], [begin, begin], [short, begin]]
    assert texts_of(caches, split.held_out, SMALL) == [[], [end, end], [end]]
    aside = HeldOut(sources, 0.2)
    assert short + begin * 2 + short + begin == "".join(
        aside.without(number, text)
        for number, texts in enumerate(([short], [TEXT, TEXT], [short, TEXT]))
        for text in texts
    )
    assert aside.texts() == [[], [end], [end]]


def test_documents_beyond_max_documents_stay_out(tmp_path: Path) -> None:
    source = source_of(tmp_path, [TEXT, "another"], max_documents=1)
    caches, split = tokenise_and_split([source], SMALL, tmp_path / "cache", 0.2)
    (train,), (aside,) = (texts_of(caches, side, SMALL)[0] for side in split)
    assert train + aside == TEXT


@pytest.mark.parametrize("text", ["ab", "é🙂", "abc", "x" * 50])
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_both_sides_of_a_short_text_hold_something(tmp_path: Path, text, fraction) -> None:
    caches, split = tokenise_and_split(
        [source_of(tmp_path, [text])], SMALL, tmp_path / "cache", fraction
    )
    (train,), (aside,) = (texts_of(caches, side, SMALL)[0] for side in split)
    assert train and aside and train + aside == text


def test_a_single_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"0\.jsonl:1: data\.eval_fraction=0\.5: .* single char"):
        tokenise_and_split([source_of(tmp_path, ["🙂"])], SMALL, tmp_path / "cache", 0.5)


def test_a_run_trains_on_the_beginning_and_evaluates_on_the_end(tmp_path, messages) -> None:
    spec = PackedSpec(
        source="jsonl", path=str(write_jsonl(tmp_path / "one.jsonl", [TEXT])), eval_fraction=0.1,
        cache_dir=str(tmp_path / "cache"), seq_len=64, batch_size=2,
    )  # fmt: skip
    data = build_data(spec, 0, tokenizer=SMALL)
    size = len(TEXT.encode())
    n = len(TEXT[cut_place(TEXT, 0.1) :].encode())
    assert f"the last {n:,} of {size:,} bytes of the longest are held out" in "".join(messages)
    # One token is one byte here; besides there are the tokens that end the two documents.
    assert data.fingerprint["eval"]["tokens"] == n + 1
    assert data.fingerprint["train"]["tokens"] == size - n + 1
    assert sum(int(batch["loss_mask"].sum()) for batch in held_out(data)) == n + 1


def test_a_lone_conversation_is_trained_on_whole(tmp_path: Path, messages, tokenizer) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "What?", "completion": "This."}\n')
    spec = PackedSpec(
        source="jsonl", path=str(path), eval_fraction=0.5, cache_dir=str(tmp_path / "cache"),
        seq_len=64, batch_size=2,
    )  # fmt: skip
    data = build_data(spec, 0, tokenizer=tokenizer, chat=ChatSettings("", loss_on="all"))
    assert "no conversation can be spared for evaluation" in "".join(messages)
    assert data.n_eval_batches == 0
    ids = tokenizer.encode("What?This.")
    assert data.batch(0)["loss_mask"][0].sum() == len(ids) + 1
