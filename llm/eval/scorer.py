"""Log-probabilities of given tokens under a model, whatever the texts' lengths.

What several texts begin with is gone through once, see `llm.data.prefix_tree`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from llm.data.prefix_tree import Text, prefix_tree
from llm.eval.batches import batches
from llm.generate.engine import Engine
from llm.models.binding import bind
from llm.models.specs import ModelSpec
from llm.train.log_probs import Likelihoods, likelihoods

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
    """A context and some of its continuations, which have room in one row."""

    query: int
    context: Ids
    continuations: Sequence[Ids]

    @property
    def length(self) -> int:
        """Places, at most; a continuation's last token is predicted but not gone through."""
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)

    @property
    def targets(self) -> int:
        """Tokens to predict, at most."""
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
        pieces = [
            piece for number, query in enumerate(queries) for piece in self._pieces(number, query)
        ]
        sizes = [max(piece.length, piece.targets) for piece in pieces]
        results: dict[int, list[Scored]] = {}
        for width, rows in batches(sizes, widest=self.context, tokens=self._batch_tokens):
            members = [[pieces[number] for number in row] for row in rows]
            arrays, scored = _layout(members, width)
            scores = self._run(arrays)
            self.tokens += int(arrays["segments"].sum())
            for row, numbers in enumerate(rows):
                which = iter(scored[row])
                for number in numbers:
                    results[number] = [
                        Scored(*(x[row, next_] for x in scores))
                        for next_ in islice(which, len(pieces[number].continuations))
                    ]
        found: list[list[Scored]] = [[] for _ in queries]
        for number, piece in enumerate(pieces):  # those of one query in their order
            found[piece.query] += results[number]
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

    def _run(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        shape = (*arrays["tokens"].shape, arrays["places"].shape[1])
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
    rows: Sequence[Sequence[_Piece]], T: int
) -> tuple[dict[str, np.ndarray], list[list[np.ndarray]]]:
    """Arrays of a batch of rows of T places; for each continuation of a row, where its scores are.

    What several texts of a row begin with is there once, see `llm.data.prefix_tree`.
    """
    names = ("tokens", "segments", "positions", "ends", "places", "targets")
    arrays: dict[str, np.ndarray] = {name: np.zeros((len(rows), T), np.int32) for name in names}
    arrays["counts"] = np.zeros(len(rows), np.int32)
    arrays["ends"][:] = T  # padding sees itself
    scored = []
    for row, members in enumerate(rows):
        tree = prefix_tree([Text(piece.context, ids) for piece in members
                            for ids in piece.continuations])  # fmt: skip
        length, count = len(tree.tokens_T), len(tree.targets_N)
        arrays["tokens"][row, :length] = tree.tokens_T
        arrays["segments"][row, :length] = 1
        arrays["positions"][row, :length] = tree.positions_T
        arrays["ends"][row, :length] = tree.ends_T
        arrays["places"][row, :count] = tree.places_N
        arrays["targets"][row, :count] = tree.targets_N
        arrays["counts"][row] = count
        scored.append(tree.scored)
    return arrays, scored


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
        ends_BT=arrays["ends"],
    )
    return likelihoods(
        hidden_BTD,
        model.head_VD().astype(hidden_BTD.dtype),
        arrays["places"],
        arrays["targets"],
        arrays["counts"],
        chunk=chunk,
    )
