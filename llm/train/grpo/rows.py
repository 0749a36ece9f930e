"""Completions as rows to train on.

A row is a tree (see `llm.data.prefix_tree`): its prompts, each once, with their completions, each
of which sees its prompt and itself. What prompts or completions begin with alike is there once too:
what a chat template puts before every question, answers that are the same. A group that is too
long for a row is cut between completions. With one completion per row this is how others lay them
out: the slow twin.

R rows, T places of a row, N = T scored tokens per row, C completion tokens per row: more than N,
since completions share them. The last token of a completion is scored, and not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from llm.data.prefix_tree import Text, common_length, prefix_tree, shared_length

_READ = ("tokens", "segment_ids", "positions", "ends", "places", "targets")
_OF_COMPLETIONS = ("scored", "sequence_ids")
_NUMBERS = ("advantages", "weights")
_SHARING = 4  # completion tokens for each place of a row, at most


@dataclass(frozen=True)
class Answer:
    """A completion to train on."""

    prompt: int
    """Number of its prompt."""
    ids: Sequence[int]
    advantage: float
    weight: float
    """Of each of its tokens in the loss."""
    values: dict[str, Float[np.ndarray, " n"]]
    """One number per token: `sampler_log_probs`, and others that the loss reads."""


@dataclass
class _Stretch:
    """Some answers to one prompt, and what they take of a row."""

    answers: list[int] = field(default_factory=list)
    places: int = 0
    scored: int = 0
    tokens: int = 0

    @property
    def size(self) -> int:
        """Places of a row that has room for it."""
        return max(self.places, self.scored, -(-self.tokens // _SHARING))


Layout = list[list[int]]
"""For each row, the numbers of the answers in it, in their order."""


def packed(prompts: Sequence[Sequence[int]], answers: Sequence[Answer], T: int) -> Layout:
    """Groups that share rows of T places: first fit, the longest first."""
    numbers: dict[int, list[int]] = {}
    for number, answer in enumerate(answers):
        numbers.setdefault(answer.prompt, []).append(number)
    # What all prompts begin with takes places once in each row, not once for each group.
    common = common_length([prompts[prompt] for prompt in numbers]) if numbers else 0
    rows: Layout = []
    room: list[int] = []
    stretches = [
        stretch
        for prompt, of_one in numbers.items()
        for stretch in _stretches(of_one, len(prompts[prompt]), answers, T)
    ]
    for stretch in sorted(stretches, key=lambda stretch: stretch.size, reverse=True):
        stretch.places -= common
        row = next((r for r, free in enumerate(room) if free >= stretch.size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(T - common)
        rows[row] += stretch.answers
        room[row] -= stretch.size
    return rows


def one_per_row(answers: Sequence[Answer]) -> Layout:
    """Every answer in a row of its own, with its prompt."""
    return [[number] for number in range(len(answers))]


def completion_tokens(T: int, *, shared: bool) -> int:
    """C of rows of T places; `shared` if there may be more completions than one in a row."""
    return _SHARING * T if shared else T


def arrays(
    rows: int, T: int, C: int, values: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each array of a batch, see `collate`."""
    return {
        **dict.fromkeys(_READ, ((rows, T), "int32")),
        **dict.fromkeys(_OF_COMPLETIONS, ((rows, C), "int32")),
        **dict.fromkeys((*_NUMBERS, *values), ((rows, C), "float32")),
        "counts": ((rows,), "int32"),
        "divisor": ((rows,), "float32"),
    }


def collate(
    layout: Layout,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    *,
    T: int,
    C: int,
    rows: int,
    rows_at_once: int,
    divisor: float,
    values: Sequence[str],
) -> dict[str, np.ndarray]:
    """The arrays of a batch.

    Args:
        layout: where the answers stand.
        prompts: token ids.
        answers: the completions, by number.
        T, C: of a row.
        rows: R; those that the layout does not fill are padding.
        rows_at_once: rows of a micro-batch. The filled ones are the first micro-batches.
        divisor: what the sum of the loss is divided by.
        values: names of the answers' `values`.

    Returns:
        `tokens`, `segment_ids` (1, or 0 for padding), `positions` and `ends`, int32 [R, T], as the
        model reads them; `places` (whose hidden state predicts each scored token) and `targets`
        (the token), int32 [R, N], of which the first `counts`, int32 [R], are filled; `scored`
        (which of the N each completion token is) and `sequence_ids` (the completion that it belongs
        to, from 1 on; 0 is no token), int32 [R, C]; `advantages`, `weights` and each of the
        answers' `values`, fp32 [R, C]; `divisor` fp32 [R], whose sum it is.
    """
    batch = {name: np.zeros(*shaped) for name, shaped in arrays(rows, T, C, values).items()}
    batch["ends"][:] = T  # of padding: not 0, so that each token sees itself
    batch["divisor"][0] = divisor
    for number, members in enumerate(layout):
        into = place_of(number, rows, rows_at_once)
        row = {name: array[into] for name, array in batch.items() if array.ndim == 2}
        batch["counts"][into] = _fill(row, prompts, [answers[member] for member in members])
    return batch


def place_of(number: int, rows: int, rows_at_once: int) -> int:
    """Where row `number` of a layout goes: micro-batch i has rows i, i + n, i + 2n, ..."""
    micro_batch, inside = divmod(number, rows_at_once)
    return inside * (rows // rows_at_once) + micro_batch


def _stretches(
    numbers: Sequence[int], prompt: int, answers: Sequence[Answer], T: int
) -> list[_Stretch]:
    """The answers to one prompt, of `prompt` tokens, cut where they would not fit into a row."""
    found: list[_Stretch] = []
    before = np.empty(0, int)
    for number in sorted(numbers, key=lambda number: list(answers[number].ids)):
        ids = np.asarray(answers[number].ids)
        shared = shared_length(before, ids)
        read = min(shared, len(before) - 1)  # its last token has no place
        if found:
            last = found[-1]
            more = _Stretch(
                [*last.answers, number],
                last.places + len(ids) - 1 - read,
                last.scored + len(ids) - shared,
                last.tokens + len(ids),
            )
        if not found or more.size > T:
            found.append(_Stretch([number], prompt + len(ids) - 1, len(ids), len(ids)))
        else:
            found[-1] = more
        before = ids
    return found


def _fill(
    row: dict[str, np.ndarray], prompts: Sequence[Sequence[int]], answers: Sequence[Answer]
) -> int:
    """Write one row; the number of its scored tokens."""
    tree = prefix_tree([Text(prompts[answer.prompt], answer.ids) for answer in answers])
    T, N = len(tree.tokens_T), len(tree.targets_N)
    row["tokens"][:T], row["positions"][:T] = tree.tokens_T, tree.positions_T
    row["segment_ids"][:T], row["ends"][:T] = 1, tree.ends_T
    row["places"][:N], row["targets"][:N] = tree.places_N, tree.targets_N
    done = 0
    for sequence, (answer, scored) in enumerate(zip(answers, tree.scored, strict=True), 1):
        here = slice(done, done + len(scored))
        row["scored"][here], row["sequence_ids"][here] = scored, sequence
        row["advantages"][here], row["weights"][here] = answer.advantage, answer.weight
        for name, values in answer.values.items():
            row[name][here] = values
        done += len(scored)
    return N
