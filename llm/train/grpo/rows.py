"""Completions as rows to train on.

A group is one stretch of a row: its prompt once, then its completions as branches, each of which
sees the prompt and itself. Groups share rows, and one that is too long for a row is cut between
completions. With one completion per row this is how others lay them out: the slow twin.

R rows, T places of a row, C = T completion tokens per row. What predicts the first token of every
completion is the prompt's last token; the last token of a completion is predicted, and not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

_INTEGERS = (
    *("tokens", "segment_ids", "positions", "branch_ids"),
    *("places", "targets", "sequence_ids"),
)
_NUMBERS = ("advantages", "weights")


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
    """A prompt and some of its answers."""

    prompt: int
    places: int
    """Of the row that it takes."""
    answers: list[int] = field(default_factory=list)
    tokens: int = 0
    """Of the answers."""


@dataclass
class Layout:
    """Which answers stand where: `rows` holds the numbers of answers, by stretch."""

    rows: list[list[_Stretch]]

    def answers_of(self, row: int) -> list[int]:
        """The answers of a row, in the order of their tokens."""
        return [answer for stretch in self.rows[row] for answer in stretch.answers]


def packed(prompts: Sequence[Sequence[int]], answers: Sequence[Answer], T: int) -> Layout:
    """Groups that share rows of T places: first fit, the longest first."""
    rows: list[list[_Stretch]] = []
    room: list[int] = []
    numbers: list[list[int]] = [[] for _ in prompts]
    for number, answer in enumerate(answers):
        numbers[answer.prompt].append(number)
    stretches = [s for of_one in numbers for s in _stretches(of_one, prompts, answers, T)]
    for stretch in sorted(stretches, key=_size, reverse=True):
        row = next((r for r, free in enumerate(room) if free >= _size(stretch)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(T)
        rows[row].append(stretch)
        room[row] -= _size(stretch)
    return Layout(rows)


def one_per_row(prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> Layout:
    """Every answer in a row of its own, with its prompt."""
    return Layout(
        [
            [_Stretch(a.prompt, len(prompts[a.prompt]) + len(a.ids) - 1, [number], len(a.ids))]
            for number, a in enumerate(answers)
        ]
    )


def arrays(rows: int, T: int, values: Sequence[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each array of a batch, see `collate`."""
    integers = dict.fromkeys(_INTEGERS, ((rows, T), "int32"))
    numbers = dict.fromkeys((*_NUMBERS, *values), ((rows, T), "float32"))
    return {**integers, **numbers, "counts": ((rows,), "int32"), "divisor": ((rows,), "float32")}


def collate(
    layout: Layout,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    *,
    T: int,
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
        T: places of a row.
        rows: R; those that the layout does not fill are padding.
        rows_at_once: rows of a micro-batch. The filled ones are the first micro-batches.
        divisor: what the sum of the loss is divided by.
        values: names of the answers' `values`.

    Returns:
        `tokens`, `segment_ids`, `positions` and `branch_ids`, int32 [R, T], as the model reads
        them; `places` (whose hidden state predicts each completion token), `targets` (the token),
        `sequence_ids` (the completion it belongs to, from 1 on), int32 [R, C]; `advantages`,
        `weights` and each of the answers' `values`, fp32 [R, C]; `counts` int32 [R], the
        completion tokens of a row, which come first; `divisor` fp32 [R], whose sum it is.
    """
    batch = {name: np.zeros(*shaped) for name, shaped in arrays(rows, T, values).items()}
    batch["divisor"][0] = divisor
    for number, stretches in enumerate(layout.rows):
        into = place_of(number, rows, rows_at_once)
        row = {name: array[into] for name, array in batch.items() if array.ndim == 2}
        batch["counts"][into] = _fill(row, stretches, prompts, answers)
    return batch


def place_of(number: int, rows: int, rows_at_once: int) -> int:
    """Where row `number` of a layout goes: micro-batch i has rows i, i + n, i + 2n, ..."""
    micro_batch, inside = divmod(number, rows_at_once)
    return inside * (rows // rows_at_once) + micro_batch


def _stretches(
    numbers: Sequence[int], prompts: Sequence[Sequence[int]], answers: Sequence[Answer], T: int
) -> list[_Stretch]:
    """The answers of one group, cut where they would not fit into a row."""
    found: list[_Stretch] = []
    for number in numbers:
        prompt, n = answers[number].prompt, len(answers[number].ids)
        if not found or max(found[-1].places + n - 1, found[-1].tokens + n) > T:
            found.append(_Stretch(prompt, len(prompts[prompt])))
        found[-1].answers.append(number)
        found[-1].places += n - 1
        found[-1].tokens += n
    return found


def _size(stretch: _Stretch) -> int:
    """Of the T places, and of the T tokens that can be predicted, in a row."""
    return max(stretch.places, stretch.tokens)


def _fill(
    row: dict[str, np.ndarray],
    stretches: Sequence[_Stretch],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
) -> int:
    """Write one row; the number of its completion tokens."""
    at = done = sequence = 0
    for segment, stretch in enumerate(stretches, 1):
        prompt = prompts[stretch.prompt]
        last = at + len(prompt) - 1  # place of the prompt's last token
        _read(row, at, prompt, segment, 0, 0)
        at += len(prompt)
        for branch, number in enumerate(stretch.answers, 1):
            answer = answers[number]
            n = len(answer.ids)
            _read(row, at, answer.ids[:-1], segment, len(prompt), branch)
            here = slice(done, done + n)
            sequence += 1
            row["places"][here] = [last, *range(at, at + n - 1)]
            row["targets"][here] = answer.ids
            row["sequence_ids"][here] = sequence
            row["advantages"][here] = answer.advantage
            row["weights"][here] = answer.weight
            for name, values in answer.values.items():
                row[name][here] = values
            at += n - 1
            done += n
    return done


def _read(
    row: dict[str, np.ndarray],
    at: int,
    ids: Sequence[int],
    segment: int,
    position: int,
    branch: int,
) -> None:
    """Write tokens that the model reads."""
    here = slice(at, at + len(ids))
    row["tokens"][here] = ids
    row["segment_ids"][here] = segment
    row["positions"][here] = np.arange(position, position + len(ids))
    row["branch_ids"][here] = branch
