import numpy as np

from llm.data.split import held_out_documents, split_documents
from llm.data.token_cache import TokenCache


def cache_of(hashes):
    """The part of a token cache that the split looks at; hashes given as shares of 2^64."""
    values = np.array([int(share * 2**64) for share in hashes], np.uint64)
    offsets = np.arange(len(hashes) + 1) * 10
    cache = object.__new__(TokenCache)
    cache.hashes, cache.offsets = values, offsets
    return cache


def split_of(caches, fraction):
    return split_documents(caches, held_out_documents([c.hashes for c in caches], fraction))


def starts(spans):
    return [span.start.tolist() for span in spans]


def test_by_hash_and_copies_stay_together():
    split = split_of([cache_of([0.5, 0.05, 0.9]), cache_of([0.05, 0.7])], 0.1)
    assert starts(split.held_out) == [[10], [0]]
    assert starts(split.train) == [[0, 20], [10]]


def test_zero_holds_out_nothing():
    split = split_of([cache_of([0.5, 0.0])], 0)
    assert starts(split.held_out) == [[]]
    assert starts(split.train) == [[0, 10]]


def test_at_least_one_document_each():
    assert starts(split_of([cache_of([0.5, 0.3])], 0.01).held_out) == [[10]]
    assert starts(split_of([cache_of([0.5, 0.3])], 0.99).train) == [[0]]


def test_each_source_keeps_a_document_to_train_on():
    # The second source has one text (twice), which a document of the first repeats.
    split = split_of([cache_of([0.5, 0.3, 0.2]), cache_of([0.2, 0.2])], 0.25)
    assert starts(split.train) == [[0, 20], [0, 10]]
    assert starts(split.held_out) == [[10], []]


def test_never_leaks_and_never_loses():
    rng = np.random.default_rng(0)
    for _ in range(200):
        pool = rng.random(rng.integers(1, 6))
        caches = [cache_of(rng.choice(pool, rng.integers(1, 6))) for _ in range(rng.integers(1, 4))]
        split = split_of(caches, float(rng.choice([0.01, 0.3, 0.95])))
        sides = [
            {
                int(value)
                for cache, span in zip(caches, spans, strict=True)
                for value in cache.hashes[np.searchsorted(cache.offsets, span.start)]
            }
            for spans in split
        ]
        assert all(len(span.start) for span in split.train)
        assert not sides[0] & sides[1]
        total = sum(len(span.start) for side in split for span in side)
        assert total == sum(len(cache.hashes) for cache in caches)
        # Nothing is held out only where each source is copies of one text, or of such a text.
        lone = {int(c.hashes[0]) for c in caches if len(set(c.hashes.tolist())) == 1}
        everything = {value for cache in caches for value in cache.hashes.tolist()}
        assert bool(sides[1]) == (everything != lone)
