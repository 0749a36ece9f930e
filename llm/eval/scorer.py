"""Log-probabilities of given tokens under a model, whatever the texts' lengths.

Texts are packed into rows of a few widths, and rows into batches of one size per width, so that a
handful of programs is compiled. What several texts begin with can be gone through once: they are
branches of one segment then (see `llm.models.attention.TokenIndex`), as in a GRPO group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from llm.data.packing import best_fit_decreasing
from llm.generate.engine import Engine
from llm.generate.rows import bucket
from llm.models.binding import bind
from llm.models.specs import ModelSpec
from llm.train.log_probs import Likelihoods, likelihoods

_NARROWEST = 512  # tokens of a row, where the model sees so many
_CALL_QUERIES = 2048  # looked at together: what is packed and sorted by length

Ids = Sequence[int]


class Query(NamedTuple):
    """A text, and continuations of it whose tokens are scored."""

    context: Ids
    """At least one token: nothing predicts the first one."""
    continuations: Sequence[Ids]
    """Not empty, and none of them empty."""


class Scored(NamedTuple):
    """The tokens of one continuation."""

    log_probs: Float[np.ndarray, " n"]
    """fp32, in nats."""
    likeliest: Bool[np.ndarray, " n"]
    """No other token was likelier there."""


class NotFiniteError(RuntimeError):
    """What a model computes are no numbers, so that there is nothing to compare or to count."""


def check_finite(log_probs: np.ndarray, of: str) -> None:
    """Hold that log-probabilities are numbers: a comparison with NaN would be silently false.

    Args:
        log_probs: any number of them.
        of: what they are of, for the message.

    Raises:
        NotFiniteError: one is NaN or infinite.
    """
    if not np.isfinite(log_probs).all():
        raise NotFiniteError(
            f"{of}: the model's log-probabilities are {log_probs[:8].tolist()}; a model whose "
            "numbers are not finite has no score"
        )


class _Piece(NamedTuple):
    """What stands in one stretch of a row: a context and some of its continuations."""

    query: int
    context: Ids
    continuations: Sequence[Ids]

    @property
    def length(self) -> int:
        """Positions; a continuation's last token is predicted but not gone through."""
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)

    @property
    def targets(self) -> int:
        return sum(map(len, self.continuations))


class Scorer:
    """Scores tokens with one set of weights.

    Args:
        engine: holds the weights, in the type that is computed in.
        context: tokens that the model is given at once, at most.
        attention: what computes the attention of whole rows, see `llm.models.kernels`.
        loss_chunk: tokens whose logits exist at the same time.
        batch_tokens: tokens that go through the model together, about.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        context: int | None = None,
        attention: str = "xla",
        loss_chunk: int = 512,
        batch_tokens: int = 4096,
    ) -> None:
        self.engine = engine
        self.context = context or engine.spec.max_seq_len
        self.tokens = 0
        """Gone through so far, padding left out."""
        self.seconds = 0.0
        """Spent on that, compilation left out."""
        self.compile_seconds = 0.0
        self._attention, self._chunk, self._batch_tokens = attention, loss_chunk, batch_tokens
        self._programs: dict[tuple[Any, ...], Callable[..., Likelihoods]] = {}

    def __call__(self, queries: Sequence[Query]) -> list[list[Scored]]:
        """Scores of every continuation of every query.

        Raises:
            ValueError: a query without context or continuation, or longer than `context`.
        """
        found: list[list[Scored]] = []
        for first in range(0, len(queries), _CALL_QUERIES):
            found += self._score(queries[first : first + _CALL_QUERIES])
        return found

    def _score(self, queries: Sequence[Query]) -> list[list[Scored]]:
        found: list[list[Scored]] = [[] for _ in queries]
        by_width: dict[int, list[_Piece]] = {}
        for number, query in enumerate(queries):
            for piece in self._pieces(number, query):
                size = max(piece.length, piece.targets)
                width = bucket(size, _NARROWEST, self.context)
                by_width.setdefault(width, []).append(piece)
        for width, pieces in sorted(by_width.items()):
            for piece, scores in self._rows(width, pieces):
                found[piece.query] += scores
        return found

    def _pieces(self, number: int, query: Query) -> Iterator[_Piece]:
        """The query, in several pieces if its continuations do not all fit beside each other."""
        if not query.context or not query.continuations or not all(query.continuations):
            raise ValueError(f"query {number}: an empty context or continuation")
        group: list[Ids] = []
        for ids in query.continuations:
            if len(query.context) + len(ids) - 1 > self.context:
                raise ValueError(
                    f"query {number}: {len(query.context) + len(ids) - 1} tokens, more than the "
                    f"context of {self.context}"
                )
            larger = _Piece(number, query.context, [*group, ids])
            if group and max(larger.length, larger.targets) > self.context:
                yield _Piece(number, query.context, group)
                group = []
            group.append(ids)
        yield _Piece(number, query.context, group)

    def _rows(self, width: int, pieces: Sequence[_Piece]) -> Iterator[tuple[_Piece, list[Scored]]]:
        """Pack, run, unpack; the pieces of one query come in their order."""
        sizes = np.array([max(piece.length, piece.targets) for piece in pieces])
        row_of = best_fit_decreasing(sizes, width)
        n_rows = int(row_of.max()) + 1
        rows: list[list[int]] = [[] for _ in range(n_rows)]
        for number, row in enumerate(row_of):
            rows[row].append(number)
        B = bucket(min(max(self._batch_tokens // width, 1), n_rows))
        branched = any(len(piece.continuations) > 1 for piece in pieces)
        results: dict[int, list[Scored]] = {}
        for first in range(0, n_rows, B):
            batch = rows[first : first + B]
            scores = self._run(_layout(batch, pieces, B, width, branched))
            self.tokens += sum(pieces[number].length for members in batch for number in members)
            for row, members in enumerate(batch):
                begin = 0
                for number in members:
                    results[number] = []
                    for ids in pieces[number].continuations:
                        span = slice(begin, begin + len(ids))
                        results[number].append(Scored(*(x[row, span].copy() for x in scores)))
                        begin += len(ids)
        for number, piece in enumerate(pieces):
            yield piece, results[number]

    def _run(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        shape = (*arrays["tokens"].shape, arrays["places"].shape[1], "branches" in arrays)
        params = self.engine.params
        if shape not in self._programs:
            began = time.perf_counter()
            program = partial(
                _likelihoods, self.engine.spec, self.engine.dtype, self._attention, self._chunk
            )
            self._programs[shape] = jax.jit(program).lower(params, arrays).compile()
            self.compile_seconds += time.perf_counter() - began
        began = time.perf_counter()
        found = jax.device_get(self._programs[shape](params, arrays))
        self.seconds += time.perf_counter() - began
        return found.log_probs, found.likeliest


def _layout(
    rows: Sequence[Sequence[int]], pieces: Sequence[_Piece], B: int, T: int, branched: bool
) -> dict[str, np.ndarray]:
    """Arrays of one batch: B rows of T positions, and the places and targets of what is scored."""
    names = ("tokens", "segments", "positions", "branches", "places", "targets")
    arrays: dict[str, np.ndarray] = {name: np.zeros((B, T), np.int32) for name in names}
    arrays["counts"] = np.zeros(B, np.int32)
    for row, members in enumerate(rows):
        at = 0

        def put(ids: Ids, segment: int, position: int, branch: int, row: int = row) -> None:
            nonlocal at
            span = slice(at, at + len(ids))
            arrays["tokens"][row, span] = ids
            arrays["segments"][row, span] = segment
            arrays["positions"][row, span] = range(position, position + len(ids))
            arrays["branches"][row, span] = branch
            at += len(ids)

        for segment, number in enumerate(members, 1):
            _, context, continuations = pieces[number]
            put(context, segment, 0, 0)
            last = at - 1
            for branch, ids in enumerate(continuations, 1):
                begin = arrays["counts"][row]
                span = slice(begin, begin + len(ids))
                arrays["places"][row, span] = [last, *range(at, at + len(ids) - 1)]
                arrays["targets"][row, span] = ids
                arrays["counts"][row] += len(ids)
                put(ids[:-1], segment, len(context), branch)
    if not branched:
        del arrays["branches"]
    return arrays


def _likelihoods(
    spec: ModelSpec,
    dtype: str,
    attention: str,
    chunk: int,
    params: Any,
    arrays: dict[str, jax.Array],
) -> Likelihoods:
    model = bind(spec, params, compute_dtype=dtype, attention=attention)
    hidden_BTD, _ = model(
        arrays["tokens"],
        segment_ids_BT=arrays["segments"],
        positions_BT=arrays["positions"],
        branch_ids_BT=arrays.get("branches"),
    )
    return likelihoods(
        hidden_BTD,
        model.head_VD().astype(hidden_BTD.dtype),
        arrays["places"],
        arrays["targets"],
        arrays["counts"],
        chunk=chunk,
    )
