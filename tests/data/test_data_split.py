import itertools

import numpy as np
import pytest

from llm.data.split import split_documents
from llm.data.token_cache import TokenCache


def cache_of(hashes, lengths=None):
    """The part of a token cache that the split looks at; hashes given as shares of 2^64."""
    lengths = lengths or [10] * len(hashes)
    values = np.array([int(share * 2**64) for share in hashes], np.uint64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    cache = object.__new__(TokenCache)
    cache.hashes, cache.offsets = values, offsets
    return cache


def starts(spans):
    return [span.start.tolist() for span in spans]


def test_by_hash_and_copies_stay_together():
    split = split_documents([cache_of([0.5, 0.05, 0.9]), cache_of([0.05, 0.7])], 0.1)
    assert starts(split.held_out) == [[10], [0]]
    assert starts(split.train) == [[0, 20], [10]]


def test_zero_holds_out_nothing():
    split = split_documents([cache_of([0.5, 0.0])], 0)
    assert starts(split.held_out) == [[]]
    assert starts(split.train) == [[0, 10]]


def test_at_least_one_document_each():
    assert starts(split_documents([cache_of([0.5, 0.3])], 0.01).held_out) == [[10]]
    assert starts(split_documents([cache_of([0.5, 0.3])], 0.99).train) == [[0]]


def test_each_source_keeps_a_document_to_train_on():
    # The second source has one text (twice), which a document of the first repeats.
    split = split_documents([cache_of([0.5, 0.3, 0.2]), cache_of([0.2, 0.2])], 0.25)
    assert starts(split.train) == [[0, 20], [0, 10]]
    assert starts(split.held_out) == [[10], []]


def test_a_single_document_loses_its_end():
    (train,), (held_out,) = split_documents([cache_of([0.5], [101])], 0.1)
    assert (train.start.tolist(), train.length.tolist()) == ([0], [90])
    assert (held_out.start.tolist(), held_out.length.tolist()) == ([90], [10])


def test_copies_of_a_single_document_all_lose_it():
    split = split_documents([cache_of([0.5, 0.5], [11, 11]), cache_of([0.5], [11])], 0.2)
    assert [span.length.tolist() for span in split.train] == [[8, 8], [8]]
    assert starts(split.held_out) == [[8], []]


@pytest.mark.parametrize("length", [3, 4, 5, 50])
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_both_sides_of_a_short_document_hold_something(length, fraction):
    (train,), (held_out,) = split_documents([cache_of([0.5], [length])], fraction)
    assert train.length[0] + held_out.length[0] == length - 1
    assert train.length[0] >= 1
    assert held_out.length[0] >= 1


def test_never_leaks_and_never_loses():
    rng = np.random.default_rng(0)
    for _ in range(200):
        pool = rng.random(rng.integers(1, 6))
        caches = [cache_of(rng.choice(pool, rng.integers(1, 6))) for _ in range(rng.integers(1, 4))]
        split = split_documents(caches, float(rng.choice([0.01, 0.3, 0.95])))
        sides = []
        for spans in split:
            sides.append(
                set(
                    itertools.chain.from_iterable(
                        cache.hashes[np.searchsorted(cache.offsets, span.start)].tolist()
                        for cache, span in zip(caches, spans, strict=True)
                        if not (span.start % 10).any()
                    )
                )
            )
        assert all(len(span.start) for span in split.train)
        assert sum(len(span.start) for span in split.held_out) >= 1
        cut_in_two = any((span.length != 9).any() for span in split.train)
        if not cut_in_two:
            assert not sides[0] & sides[1]
            total = sum(len(span.start) for side in split for span in side)
            assert total == sum(len(cache.hashes) for cache in caches)
