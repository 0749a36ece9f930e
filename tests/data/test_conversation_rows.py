"""Conversations from files to rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_records import SPECIALS
from chat_templates import CHATML

from llm.core.spec import RefusedError
from llm.data.conversations import ChatEncoder, ChatSettings
from llm.data.fitting import fit, trained_targets
from llm.data.pipeline import Data
from llm.data.specs import PackedSpec, PaddedSpec, TokenizerSpec
from llm.data.split import Spans


def conversation(number: int, words: int) -> dict[str, Any]:
    rng = random.Random(number)
    answer = " ".join(rng.choice(["alpha", "beta", "gamma"]) for _ in range(words))
    return {
        "messages": [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture
def build(tmp_path: Path):
    """`build(records, PaddedSpec, loss_on="last", seq_len=32)`: the data of these records."""

    def make(records, kind=PackedSpec, *, template=CHATML, data=None, **settings) -> Data:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        changes = {
            "source": "jsonl", "path": str(path), "seq_len": 64, "batch_size": 4,
            "cache_dir": str(tmp_path / "cache"), "eval_fraction": 0.1,
            "tokenizer": TokenizerSpec(vocab_size=400, special_tokens=SPECIALS),
        } | (data or {})  # fmt: skip
        chat = ChatSettings(template, **settings)
        return kind(**changes).build(seed=0, chat=chat)

    return make


RECORDS = [conversation(number, 1 + number * 7 % 40) for number in range(80)]


def documents(data: Data, batches: int = 60):
    """Every document in the first batches: (tokens, targets' mask)."""
    for index in range(batches):
        batch = data.batch(index)
        for row in range(len(batch["tokens"])):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                here = batch["segment_ids"][row] == segment
                tokens = [*batch["tokens"][row][here][:1], *batch["targets"][row][here]]
                yield tuple(map(int, tokens)), tuple(map(int, batch["loss_mask"][row][here]))


@pytest.mark.parametrize("kind", [PackedSpec, PaddedSpec])
def test_rows_hold_whole_conversations(build, kind):
    data = build(RECORDS, kind, data={"seq_len": 128})
    encoder = ChatEncoder(ChatSettings(CHATML), data.tokenizer)
    expected = set()
    for record in RECORDS:
        tokens, trained = encoder.of_messages(None, record["messages"], {})
        expected.add((tuple(tokens.tolist()), tuple(trained[1:].astype(int).tolist())))
    found = set(documents(data))
    held_out = {
        (tuple(question.prompt), tuple(question.answer)) for question in data.questions(100)
    }
    assert found < expected
    assert len(found) + len(held_out) == len(expected) == 80
    assert data.fingerprint["train"]["trained"] == sum(sum(mask) for _, mask in found)


def test_packed_and_padded_hold_the_same(build):
    both = [set(documents(build(RECORDS, kind))) for kind in (PackedSpec, PaddedSpec)]
    assert both[0] == both[1]


def test_padding_is_not_trained(build):
    batch = build(RECORDS, PaddedSpec).batch(0)
    assert not batch["loss_mask"][batch["segment_ids"] == 0].any()
    assert 0 < batch["loss_mask"].sum() < (batch["segment_ids"] > 0).sum()


@pytest.mark.parametrize("too_long", ["cut_right", "cut_left", "split", "drop"])
def test_conversations_longer_than_a_row(build, messages, too_long: str):
    records = [conversation(0, 200), *(conversation(n, 3) for n in range(1, 20))]
    data = build(records, too_long=too_long, data={"eval_fraction": 0})
    encoder = ChatEncoder(ChatSettings(CHATML), data.tokenizer)
    whole = encoder.of_messages(None, records[0]["messages"], {}).tokens.tolist()
    found = [tokens for tokens, _ in documents(data, 5)]
    parts = [tokens for tokens in found if len(tokens) == 65]
    if too_long == "cut_right":
        assert set(parts) == {tuple(whole[:65])}
    elif too_long == "cut_left":
        assert set(parts) == {tuple(whole[-65:])}
    elif too_long == "split":
        assert set(parts) == {tuple(whole[i : i + 65]) for i in range(0, len(whole) - 65, 64)}
    else:
        assert not parts
    assert any(
        f"1 of 20 conversations are longer than data.seq_len=64 (trainer.too_long={too_long})"
        in line
        for line in messages
    )


def test_nothing_to_train_is_left_out_and_counted(build, messages):
    empty = {"messages": [{"role": "user", "content": "Hello?"}]}
    data = build([empty, *RECORDS[:20], {**empty, "messages": empty["messages"] * 2}])
    assert any("left out 2 conversations with nothing to train" in line for line in messages)
    assert data.fingerprint["sources"][0]["nothing_to_train"] == 2
    assert all(any(mask) for _, mask in documents(data, 5))
    silent = [{"messages": [{"role": "user", "content": "?" * n}]} for n in range(1, 4)]
    with pytest.raises(RefusedError, match=r"no conversation has anything to train: 3 read"):
        build(silent, data={"eval_fraction": 0})
    long = [conversation(number, 100) for number in range(3)]
    with pytest.raises(RefusedError, match=r"longer than data.seq_len=8 \(trainer.too_long=drop\)"):
        build(long, too_long="drop", data={"seq_len": 8})


def test_trained_targets_equals_counting():
    rng = np.random.default_rng(0)

    class Cache:
        trained = rng.random(500) < 0.3

    start = rng.integers(0, 400, 60)
    spans = Spans(start, rng.integers(0, 99, 60))
    for cache in (Cache(), type("Plain", (), {"trained": None})()):
        counts = trained_targets(cache, spans)
        for number, (begin, length) in enumerate(zip(*spans, strict=True)):
            window = slice(begin + 1, begin + 1 + length)
            expected = length if cache.trained is None else cache.trained[window].sum()
            assert counts[number] == expected
    assert len(trained_targets(Cache(), Spans(start[:0], start[:0]))) == 0
    kept, _ = fit(Cache(), spans, 20, "cut_right")
    assert (trained_targets(Cache(), kept) > 0).all()


def test_questions_are_held_out_prompts_with_their_answers(build):
    data = build(RECORDS, data={"eval_fraction": 0.3})
    questions = data.questions(5)
    assert questions == data.questions(5)
    assert len(questions) == 5 and len(set(map(str, questions))) == 5
    trained = {tokens for tokens, _ in documents(data)}
    for prompt, answer in questions:
        assert tuple(prompt + answer) not in trained
        text = data.tokenizer.decode(prompt, skip_specials=False)
        assert text.endswith("<|im_start|>assistant\n")
        assert data.tokenizer.decode(answer, skip_specials=False).endswith("<|im_end|>")
    assert build(RECORDS, loss_on="all", data={"eval_fraction": 0.3}).questions(5) == []


def test_examples_say_what_is_trained(build):
    data = build(RECORDS)
    (first, second) = data.examples(2)
    for pieces in (first, second):
        text = "".join(text for text, trained in pieces if trained)
        assert text.endswith("<|im_end|>")
        assert not pieces[0][1]


def test_tables_of_conversations(tmp_path: Path, build):
    import datasets

    table = datasets.Dataset.from_list([{**record, "id": 7} for record in RECORDS])
    table.to_parquet(tmp_path / "chats.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    kinds = {"jsonl": "chats.jsonl", "parquet": "chats.parquet", "hf": "saved"}
    rows = [
        set(documents(build(RECORDS, data={"source": source, "path": str(tmp_path / name)})))
        for source, name in kinds.items()
    ]
    assert rows[0] == rows[1] == rows[2]
    datasets.Dataset.from_dict({"id": [1, 2]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(RefusedError, match="has id: expected messages, or prompt and completion"):
        build(RECORDS, data={"source": "parquet", "path": str(tmp_path / "other.parquet")})


def test_tasks_are_a_source(tmp_path: Path):
    settings = {
        "source": "task", "max_documents": 300, "seq_len": 256, "batch_size": 4,
        "cache_dir": str(tmp_path), "tokenizer": TokenizerSpec(vocab_size=500),
        "eval_fraction": 0.1,
    }  # fmt: skip
    chat = PackedSpec(**settings).build(seed=0, chat=ChatSettings(CHATML))
    total = chat.fingerprint["train"]["documents"] + chat.fingerprint["eval"]["documents"]
    assert total == 300
    text = PackedSpec(**settings, path="addition").build(seed=0)
    assert "+" in text.tokenizer.decode(text.batch(0)["tokens"][0])
    with pytest.raises(RefusedError, match="telepathy"):
        PackedSpec(**settings, path="telepathy").build(seed=0)
