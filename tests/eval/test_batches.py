"""Rows of texts: each text once, nothing too full, and little padding."""

import numpy as np
import pytest

from llm.eval.batches import batches


def lengths(n: int, longest: int) -> list[int]:
    return np.exp(np.random.default_rng(n).uniform(0, np.log(longest), n)).astype(int).tolist()


@pytest.mark.parametrize("tokens", [1, 4096, 10**6])
@pytest.mark.parametrize(
    ("sizes", "widest"),
    [
        ([], 512), ([1], 1), ([7], 9), ([300] * 5, 300), ([513, 1, 512], 1500),
        (lengths(50, 1500), 1500), (lengths(2048, 2048), 2048), (lengths(300, 100), 4096),
    ],
)  # fmt: skip
def test_each_text_has_its_place(sizes: list[int], widest: int, tokens: int) -> None:
    found = list(batches(sizes, widest=widest, tokens=tokens))
    placed = [number for batch in found for row in batch.rows for number in row]
    assert sorted(placed) == list(range(len(sizes)))
    for width, rows in found:
        assert width <= widest
        assert len(rows) * width <= max(tokens, width)
        assert all(sum(sizes[number] for number in row) <= width for row in rows)
        assert max(sizes[number] for row in rows for number in row) > width // 2 or width <= 512
    assert len({(width, len(rows)) for width, rows in found}) == len({w for w, _ in found})


@pytest.mark.parametrize(("longest", "widest"), [(1500, 2048), (2048, 2048), (600, 8192)])
def test_little_is_padding(longest: int, widest: int) -> None:
    sizes = lengths(500, longest)
    rows = sum(width * len(rows) for width, rows in batches(sizes, widest=widest, tokens=4096))
    assert sum(sizes) / rows > 0.93
