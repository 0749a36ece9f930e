"""Packed and padded rows: every position once, laid out as documented."""

import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from data_corpora import held_out, random_texts

from llm.data.packing import best_fit_decreasing, cut_to_length
from llm.data.padding import group_by_length
from llm.data.rows import EMPTY, Rows, collate
from llm.data.source import Skipped
from llm.data.sources import open_source
from llm.data.specs import PackedSpec, PaddedSpec
from llm.data.split import Spans


def slow_best_fit_decreasing(lengths, capacity):
    """The textbook: the longest first, into the fullest row with room, else into a new one."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [n for n, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda n: rooms[n])] -= length
        else:
            rooms.append(capacity - length)
    return rooms


@pytest.mark.parametrize("seed", range(20))
def test_fast_packing_equals_slow_packing(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(2, 50))
    lengths = rng.integers(1, capacity + 1, rng.integers(0, 300))
    row = best_fit_decreasing(lengths, capacity)
    filled = np.bincount(row, weights=lengths).astype(int)
    assert (filled <= capacity).all()
    slow = slow_best_fit_decreasing(lengths.tolist(), capacity)
    assert sorted(capacity - filled) == sorted(slow)


def test_packing_is_fast():
    lengths = np.minimum(np.random.default_rng(0).geometric(0.002, 100_000), 2048)
    begin = time.process_time()
    row = best_fit_decreasing(lengths, 2048)
    assert time.process_time() - begin < 5  # about 0.5 s on an idle core
    assert lengths.sum() / (2048 * (row.max() + 1)) > 0.99


def test_cut_to_length():
    start, length = cut_to_length(Spans(np.array([0, 100]), np.array([7, 3])), 3)
    assert start.tolist() == [0, 3, 6, 100]
    assert length.tolist() == [3, 3, 1, 3]


def bigrams(documents):
    return Counter(pair for ids in documents for pair in pairwise(ids))


def documents_of(spec, data):
    """What the rows must hold, made the slow way."""
    tokenizer = data.tokenizer
    source = open_source(spec.sources[0], Path(spec.cache_dir))
    for document in source.documents(Skipped()):
        ids = tokenizer.encode(document.text)
        yield [tokenizer.start_id, *ids, tokenizer.separator_id]


def segments(batch):
    """Each segment of a batch: (inputs, targets); checks the layout on the way."""
    for tokens, targets, ids, positions, mask in zip(*(batch[k] for k in FIELDS), strict=True):
        used = int((ids > 0).sum())
        assert mask.tolist() == (ids > 0).tolist()  # plain text: everything is trained
        assert (ids[used:] == 0).all()
        assert not tokens[used:].any()
        assert not targets[used:].any()
        assert not positions[used:].any()
        numbers = np.unique(ids[:used])
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (np.diff(ids[:used]) >= 0).all()
        for number in numbers:
            mine = ids == number
            assert positions[mine].tolist() == list(range(mine.sum()))
            assert tokens[mine][1:].tolist() == targets[mine][:-1].tolist()
            yield tokens[mine].tolist(), targets[mine].tolist()


FIELDS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")


def epoch(data):
    """All segments of the first epoch, batch by batch."""
    rows = data.fingerprint["train"]["rows"]
    index = 0
    while rows > 0:
        batch = data.batch(index)
        filled = int((batch["segment_ids"] > 0).any(axis=1).sum())
        take = min(filled, rows)  # packed: the last batch runs into the next epoch
        yield {name: array[:take] for name, array in batch.items()}
        rows -= take
        index += 1


@pytest.mark.parametrize("kind", [PackedSpec, PaddedSpec])
@pytest.mark.parametrize("seq_len", [16, 64, 1000])
def test_every_token_is_predicted_exactly_once(spec_of, kind, seq_len):
    spec = spec_of(random_texts(150), kind, seq_len=seq_len)
    data = spec.build(seed=3)
    found = Counter()
    for batch in [*epoch(data), *held_out(data)]:
        assert all(array.dtype == np.int32 for array in batch.values())
        for inputs, targets in segments(batch):
            found.update(zip(inputs, targets, strict=True))
    assert found == bigrams(documents_of(spec, data))


@pytest.mark.parametrize("kind", [PackedSpec, PaddedSpec])
def test_documents_stay_whole_and_long_ones_are_cut_in_order(spec_of, kind):
    spec = spec_of(random_texts(150), kind, eval_fraction=0.0)
    data = spec.build(seed=3)
    assert data.n_eval_batches == 0
    assert held_out(data) == []
    found = Counter(tuple(s[0]) for batch in epoch(data) for s in segments(batch))
    expected = Counter()
    for ids in documents_of(spec, data):
        inputs = ids[:-1]
        expected.update(tuple(inputs[n : n + 64]) for n in range(0, len(inputs), 64))
    assert found == expected


def test_packing_pads_less_than_a_percent_even_if_lengths_fit_badly(spec_of):
    texts = [f"{n:03}" + "x" * 60 for n in range(400)]
    spec = spec_of(texts, seq_len=64, eval_fraction=0.0)
    spec = spec.replace(tokenizer=spec.tokenizer.replace(vocab_size=259), seq_len=100)
    data = spec.build(seed=0)
    train = data.fingerprint["train"]
    assert train["tokens"] == 400 * 64
    assert train["padding"] < 0.01
    found = Counter()
    for batch in epoch(data):
        for inputs, targets in segments(batch):
            found.update(zip(inputs, targets, strict=True))
    assert found == bigrams(documents_of(spec, data))


def test_the_standard_library_packs_well(tmp_path):
    data = PackedSpec(cache_dir=str(tmp_path), max_documents=250).build(seed=0)
    train = data.fingerprint["train"]
    assert train["padding"] < 0.01
    assert train["documents"] + data.fingerprint["eval"]["documents"] == 250
    sizes = data.tokenizer.token_bytes
    eval_bytes = sum(
        int(sizes[batch["targets"]][batch["segment_ids"] > 0].sum()) for batch in held_out(data)
    )
    train_bytes = sum(int(sizes[t].sum()) for b in epoch(data) for _, t in segments(b))
    assert eval_bytes + train_bytes == data.fingerprint["sources"][0]["bytes"]
    assert "padding" in data.describe()


def test_padded_rows_use_the_smallest_bucket(spec_of):
    spec = spec_of(random_texts(200), PaddedSpec, buckets=[8, 32])
    data = spec.build(seed=1)
    assert data.row_lengths == (8, 32, 64)
    shorter = {8: 0, 32: 8, 64: 32}
    for batch in [*map(data.batch, range(200)), *held_out(data)]:
        rows, width = batch["tokens"].shape
        assert rows == 4
        used = (batch["segment_ids"] > 0).sum(axis=1)
        assert ((used == 0) | ((used > shorter[width]) & (used <= width))).all()
        assert (batch["segment_ids"].max(axis=1) <= 1).all()


def test_group_by_length_leaves_no_row_out():
    length = np.random.default_rng(0).integers(1, 65, 333)
    buckets, rooms = [8, 32, 64], np.array([40, 10, 5])
    table = group_by_length(length, buckets, rooms)
    rows = [table.rows(n, rooms[table.bucket[n]]) for n in range(len(table))]
    rows = np.concatenate(rows)
    assert sorted(rows[rows != EMPTY]) == list(range(333))
    counts = np.bincount(np.searchsorted(buckets, length))
    assert len(table) == sum(-(-counts // rooms))


def test_batches_of_about_as_many_tokens(spec_of):
    """As many positions in every batch, each row once, and hosts that share it out."""
    settings = {"buckets": [8, 24], "batch_by": "tokens"}
    spec = spec_of(random_texts(400), PaddedSpec, **settings)
    data, hosts = spec.build(seed=1), [spec.build(1, host, 2) for host in range(2)]
    seen = Counter()
    count = len(list(epoch(data)))
    for n in range(count):
        batch = data.batch(n)
        rows, width = batch["tokens"].shape
        assert rows == {8: 32, 24: 8, 64: 4}[width]  # 4 x 64 positions; 24 fits into 64 twice
        seen.update(tuple(row) for inputs, row in segments(batch))
        shares = [host.batch(n)["tokens"] for host in hosts]
        np.testing.assert_array_equal(np.concatenate(shares), batch["tokens"])
    by_rows = spec_of(random_texts(400), PaddedSpec, buckets=[8, 24]).build(seed=1)
    assert seen == Counter(tuple(row) for b in epoch(by_rows) for _, row in segments(b))
    assert count < len(list(epoch(by_rows)))
    assert sum(len(b["tokens"]) for b in held_out(data)) % 4 == 0


def test_a_held_out_set_smaller_than_a_batch(spec_of):
    for kind in (PackedSpec, PaddedSpec):
        data = spec_of(random_texts(3), kind, batch_size=64).build(seed=0)
        assert 0 < data.fingerprint["eval"]["rows"] < 64
        batches = held_out(data)
        assert {batch["tokens"].shape[0] for batch in batches} == {64}
        used = sum(int((batch["segment_ids"] > 0).sum()) for batch in batches)
        assert used == data.fingerprint["eval"]["tokens"]
        assert len(data.batch(0)["tokens"]) == 64


def test_collate_takes_rows_of_several_sources(spec_of):
    data = spec_of(["ab", "cd"], eval_fraction=0.0).build(seed=0)
    (rows,) = data._train._plans
    assert isinstance(rows, Rows)
    batch = collate([rows, rows], np.array([1, 0, 0, 1]), np.array([0, EMPTY, 0, 0]), 64)
    assert not batch["segment_ids"][1].any()
    for row in (2, 3):
        np.testing.assert_array_equal(batch["tokens"][row], batch["tokens"][0])
