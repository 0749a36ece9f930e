"""Log-probabilities of tokens: whatever shares their row, they are what the plain logits say."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.special import log_softmax

from llm.eval.scorer import Query, Scorer
from llm.eval.windows import windows


def reference(lm, pairs: list[tuple[list[int], list[int]]]) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each text and its continuation: log-probabilities, and which tokens are the likeliest."""
    inputs = [[*context, *ids[:-1]] for context, ids in pairs]
    logits_BTV = lm.logits([ids + [0] * (64 - len(ids)) for ids in inputs])
    for (context, ids), logits_TV in zip(pairs, logits_BTV, strict=True):
        own = logits_TV[len(context) - 1 :][: len(ids)]
        log_probs = log_softmax(own.astype(np.float64), axis=-1)[np.arange(len(ids)), ids]
        yield log_probs, own.argmax(-1) == ids


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_scores_are_those_of_each_text_alone(lm, batch_tokens: int) -> None:
    rng = np.random.default_rng(0)

    def draw(n: int) -> list[int]:
        return rng.integers(0, lm.spec.vocab, n).tolist()

    queries = [Query(draw(1 + n % 20), [draw(1 + (n + m) % 9) for m in range(1 + n % 4)])
               for n in range(30)]  # fmt: skip
    queries.append(Query(draw(1), [draw(64)]))  # fills the context
    queries.append(Query(draw(1), [draw(1) for _ in range(80)]))  # more targets than places
    scorer = Scorer(lm.engine, batch_tokens=batch_tokens, loss_chunk=7)
    found = scorer(queries)
    pairs = [(query.context, ids) for query in queries for ids in query.continuations]
    flat = [scored for scores in found for scored in scores]
    for got, (log_probs, likeliest) in zip(flat, reference(lm, pairs), strict=True):
        np.testing.assert_allclose(got.log_probs, log_probs, atol=2e-5)
        assert got.likeliest.tolist() == likeliest.tolist()
    ends = [len(ids) - 1 for query in queries for ids in query.continuations]
    # The last query has more targets than places, and is gone through in two parts.
    assert scorer.tokens == sum(len(query.context) for query in queries) + sum(ends) + 1
    assert len(scorer._programs) == 1


def test_what_texts_begin_with_is_gone_through_once(lm) -> None:
    """Also where it is the beginning of several queries, or of their continuations."""
    context = list(range(5, 25))
    queries = [
        Query(context, [[1, 2, 3], [1, 2, 4], [9]]),
        Query(context, [[1, 2, 3, 5]]),
        Query([*context, 1], [[2, 3], [7, 8]]),
    ]
    scorer = Scorer(lm.engine)
    flat = [scored for scores in scorer(queries) for scored in scores]
    pairs = [(query.context, ids) for query in queries for ids in query.continuations]
    for got, (log_probs, likeliest) in zip(flat, reference(lm, pairs), strict=True):
        np.testing.assert_allclose(got.log_probs, log_probs, atol=2e-5)
        assert got.likeliest.tolist() == likeliest.tolist()
    assert scorer.tokens < 50 < sum(len(begin) + len(ids) - 1 for begin, ids in pairs)


def test_what_cannot_be_scored_is_an_error(lm) -> None:
    scorer = Scorer(lm.engine, context=8)
    for bad, message in [
        (Query([], [[1]]), "empty"), (Query([1], []), "empty"), (Query([1], [[1], []]), "empty"),
        (Query([1, 2], [[1] * 8]), "9 tokens, more than the context of 8"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            scorer([bad])


@pytest.mark.parametrize(("n", "context", "stride"), [(2, 5, 5), (30, 5, 5), (30, 7, 3), (8, 7, 1)])
def test_windows_score_every_token_once(n: int, context: int, stride: int) -> None:
    ids = list(range(n))
    queries = list(windows(ids, context, stride))
    assert [token for query in queries for token in query.continuations[0]] == ids[1:]
    for query in queries:
        (scored,) = query.continuations
        text = [*query.context, *scored]
        assert text == list(range(text[0], text[-1] + 1))
        assert len(text) - 1 <= context
        assert text[0] == 0 or len(query.context) > context - stride
