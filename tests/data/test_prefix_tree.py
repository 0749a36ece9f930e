"""Trees of texts that begin alike, against the texts one by one."""

import numpy as np
import pytest

from llm.data.prefix_tree import PrefixTree, Text, prefix_tree, shared_length


def way_to(tree: PrefixTree, place: int) -> list[int]:
    """The tokens that the one at `place` sees, itself included."""
    return [int(tree.tokens_T[i]) for i in range(place + 1) if place < tree.ends_T[i]]


def prefixes(texts: list[Text], *, scored: bool) -> set[tuple[int, ...]]:
    """What ends with a token that is scored, or that is read."""
    found = set()
    for beginning, continuation in texts:
        ids = (*beginning, *continuation)
        ends = range(len(beginning) + 1, len(ids) + 1) if scored else range(1, len(ids))
        found |= {ids[:end] for end in ends}
    return found


def assert_is_tree_of(tree: PrefixTree, texts: list[Text]) -> None:
    for (beginning, continuation), scored in zip(texts, tree.scored, strict=True):
        ids = [*beginning, *continuation]
        assert len(scored) == len(continuation)
        for i, which in enumerate(scored, len(beginning)):
            assert tree.targets_N[which] == ids[i]
            assert way_to(tree, tree.places_N[which]) == ids[:i]
            assert tree.positions_T[tree.places_N[which]] == i - 1
    # Nothing is there twice, and nothing that no text asks for.
    assert len(tree.tokens_T) == len(prefixes(texts, scored=False))
    assert len(tree.targets_N) == len(prefixes(texts, scored=True))


@pytest.mark.parametrize("seed", range(30))
def test_texts_are_what_they_were(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def draw() -> list[int]:
        return rng.integers(0, 2, rng.integers(1, 6)).tolist()  # of two tokens: much is alike

    texts = [Text(draw(), draw()) for _ in range(rng.integers(1, 13))]
    assert_is_tree_of(prefix_tree(texts), texts)


def test_one_text_is_a_row_of_its_own() -> None:
    tree = prefix_tree([Text([5, 6], [7, 8, 9])])
    assert tree.tokens_T.tolist() == [5, 6, 7, 8]
    assert tree.positions_T.tolist() == [0, 1, 2, 3]
    assert tree.ends_T.tolist() == [4] * 4
    assert tree.places_N.tolist() == [1, 2, 3]
    assert tree.targets_N.tolist() == [7, 8, 9]
    assert [x.tolist() for x in tree.scored] == [[0, 1, 2]]


def test_texts_that_are_the_same_are_one() -> None:
    tree = prefix_tree([Text([1, 2], [3, 4])] * 3)
    assert len(tree.tokens_T) == 3
    assert [x.tolist() for x in tree.scored] == [[0, 1]] * 3


def test_a_text_may_go_on_where_another_ends() -> None:
    texts = [Text([1], [2, 3]), Text([1], [2, 3, 4]), Text([1, 2], [3]), Text([1, 2, 3], [4, 5])]
    assert_is_tree_of(prefix_tree(texts), texts)


def test_no_texts() -> None:
    tree = prefix_tree([])
    assert not tree.tokens_T.size
    assert not tree.scored


@pytest.mark.parametrize("text", [Text([], [1]), Text([1], [])])
def test_empty_parts_are_refused(text: Text) -> None:
    with pytest.raises(ValueError, match="without beginning or continuation"):
        prefix_tree([Text([1], [2]), text])


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 2, 3], 2), ([1, 2, 9], [1, 3, 9], 1)],
)
def test_shared_length(one: list[int], other: list[int], length: int) -> None:
    assert shared_length(np.array(one), np.array(other)) == length
