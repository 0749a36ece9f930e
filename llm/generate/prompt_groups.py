"""Which prompts go through the model together, before anything is written after them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from llm.generate.rows import SMALLEST, bucket

# Tokens of a group: enough to keep the device busy. In bf16 on a CPU more than these take twice as
# long each, see llm.models.linear.
_TOKENS_AT_ONCE = {("cpu", "float32"): 1024, ("cpu", "bfloat16"): 256}
_TOKENS_AT_ONCE_ELSEWHERE = 8192


class PromptGroup(NamedTuple):
    """Prompts that are prefilled together."""

    prompts: list[int]
    """Their numbers in the list."""
    rows: int
    """Rows that go through the model, of which they fill the first."""


def group_rows(prompts: int, columns: int, platform: str, dtype: str) -> int:
    """Rows of a group of prompts of up to `columns` tokens, in a list of so many prompts.

    A power of two, or three quarters of one. Places that the last group of a width leaves empty are
    gone through as well: in return, a list needs one program for each width, whichever prompts are
    in it. `platform` and `dtype` say where and in what the products are computed.
    """
    tokens = _TOKENS_AT_ONCE.get((platform, dtype), _TOKENS_AT_ONCE_ELSEWHERE)
    needed = min(prompts, max(tokens // columns, 1))
    rows = bucket(needed)
    fewer = rows * 3 // 4
    return fewer if fewer >= needed else rows


def prompt_groups(
    prompts: Sequence[Sequence[int]], most_columns: int, platform: str, dtype: str
) -> list[PromptGroup]:
    """Groups of all prompts, the shortest first.

    All but the last token of a prompt go through the model. Those of a group do so in the same
    number of columns, the next power of two up to `most_columns`.
    """

    def columns(p: int) -> int:
        return bucket(len(prompts[p]) - 1, SMALLEST, most_columns)

    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    groups = []
    for width, members in groupby(order, columns):
        alike, rows = list(members), group_rows(len(prompts), width, platform, dtype)
        starts = range(0, len(alike), rows)
        groups += [PromptGroup(alike[start : start + rows], rows) for start in starts]
    return groups
