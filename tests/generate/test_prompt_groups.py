"""Which prompts are prefilled together."""

import numpy as np
import pytest

from llm.generate.prompt_groups import group_rows, prompt_groups


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("count", [1, 3, 8, 9, 200])
def test_every_prompt_is_in_one_group_of_its_width(platform: str, count: int) -> None:
    sizes = np.random.default_rng(count).integers(1, 600, count)
    prompts = [[0] * size for size in sizes]
    groups = prompt_groups(prompts, 500, platform, "float32")
    assert sorted(p for group in groups for p in group.prompts) == list(range(count))
    seen = [sizes[p] for group in groups for p in group.prompts]
    assert seen == sorted(seen)
    rows_of: dict[int, set[int]] = {}
    for group in groups:
        widths = [
            min(max(64, 1 << max(int(sizes[p]) - 2, 0).bit_length()), 500) for p in group.prompts
        ]
        assert len(set(widths)) == 1 and len(group.prompts) <= group.rows
        rows_of.setdefault(widths[0], set()).add(group.rows)
    assert all(len(rows) == 1 for rows in rows_of.values())  # one program per width


@pytest.mark.parametrize(
    ("platform", "dtype", "rows"),
    [
        ("cpu", "float32", [16, 8, 1]),
        ("cpu", "bfloat16", [4, 2, 1]),
        ("gpu", "float32", [128, 64, 2]),
        ("gpu", "bfloat16", [128, 64, 2]),
    ],
)
def test_a_group_keeps_the_device_busy_and_no_more(platform, dtype, rows) -> None:
    assert [group_rows(100, columns, platform, dtype) for columns in (64, 128, 4096)] == rows
    assert [group_rows(n, 64, platform, dtype) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_few_sizes_of_groups_and_little_left_empty() -> None:
    sizes = [group_rows(n, 64, "gpu", "float32") for n in range(1, 129)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert all(n <= size < 1.5 * n for n, size in enumerate(sizes, start=1))
