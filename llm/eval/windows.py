"""Texts longer than what a model is given at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llm.eval.scorer import Query


def windows(ids: Sequence[int], context: int, stride: int) -> Iterator[Query]:
    """Queries that score every token but the first once, in order.

    A window begins every `stride` tokens and is `context` tokens long; in each, the tokens are
    scored that no window before it has reached. So all but the first `context` tokens have at
    least `context - stride` tokens to see besides the one that predicts them: a small stride gives
    nearly all of them a full context, at `context / stride` times the price (the "strided"
    perplexity of transformers' documentation, whose `max_length` is `context + 1`: it counts the
    token that is only predicted).

    Args:
        ids: two or more.
        context: tokens that the model sees at most.
        stride: from 1 to `context`.
    """
    predicted = len(ids) - 1
    done = 0
    for begin in range(0, predicted, stride):
        end = min(begin + context, predicted)
        yield Query(ids[begin : done + 1], [ids[done + 1 : end + 1]])
        done = end
        if end == predicted:
            return
