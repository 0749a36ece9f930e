"""A text that goes on: the cache is kept, and what comes out is what a fresh start gives."""

import jax
import pytest

from llm.core.spec import RefusedError
from llm.generate.engine import Engine
from llm.generate.session import Session
from llm.generate.specs import Sampling
from llm.models.parameter import parameters
from llm.models.specs import LlamaSpec

SPEC = LlamaSpec(
    vocab_size=50, max_seq_len=192, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_mlp=48,
    init_std=0.3,
)  # fmt: skip
GREEDY = Sampling(max_new_tokens=20, temperature=0.0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(SPEC, parameters(SPEC.build(jax.random.key(0))))


def answer(session: Session, ids: list[int], sampling: Sampling = GREEDY, stop_ids=()) -> list[int]:
    return [token for new in session.stream(ids, sampling, stop_ids) for token in new]


def fresh(engine: Engine, ids: list[int], sampling: Sampling = GREEDY) -> list[int]:
    return engine.generate([ids], sampling, key=jax.random.key(0))[0][0].ids


def test_turns_equal_a_fresh_start(engine, monkeypatch) -> None:
    """While only new tokens are run."""
    session, extended = engine.session(0), []
    whole = engine.extend
    monkeypatch.setattr(
        engine, "extend", lambda c, ids: (extended.append(len(ids)), whole(c, ids))[1]
    )
    text = [1, 2, 3]
    for turn in range(5):
        new = answer(session, text)
        assert new == fresh(engine, text)
        assert session.tokens == [*text, *new][:-1]
        text = [*text, *new, 4 + turn, 5, 6]
    assert extended == [3] * 4  # the last new token, and what was added but for its own last


def test_an_edited_past_is_run_again_from_the_edit(engine) -> None:
    session = engine.session(0)
    text = [*range(30)]
    text += answer(session, text)
    edited = [*text[:25], 49, 48, 47]
    assert answer(session, edited) == fresh(engine, edited)
    other = [9, 9]  # nothing in common
    assert answer(session, other) == fresh(engine, other)
    assert answer(session, text[:31]) == fresh(engine, text[:31])


def test_closing_early_leaves_it_consistent(engine) -> None:
    session = engine.session(0)
    text = [1, 2, 3]
    stream = session.stream(text, GREEDY, ())
    text += next(stream)
    stream.close()
    assert session.tokens == text[:-1]
    assert answer(session, text) == fresh(engine, text)


def test_failing_in_the_middle_starts_over(engine, monkeypatch) -> None:
    session = engine.session(0)
    text = [1, 2, 3]
    whole = engine.decode
    stream = session.stream(text, GREEDY, ())
    next(stream)
    monkeypatch.setattr(engine, "decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert session.tokens == []
    monkeypatch.setattr(engine, "decode", whole)
    assert answer(session, text) == fresh(engine, text)


def test_stops(engine) -> None:
    free = answer(engine.session(0), [7, 8])
    stop = free[5]
    assert answer(engine.session(0), [7, 8], stop_ids=[stop]) == free[: free.index(stop) + 1]


def test_seeds(engine) -> None:
    sampling = GREEDY.replace(temperature=1.0)
    first = answer(engine.session(0), [1], sampling)
    assert answer(engine.session(0), [1], sampling) == first
    assert answer(engine.session(1), [1], sampling) != first


def test_to_the_last_position(engine) -> None:
    text = [i % 50 for i in range(172)]
    assert answer(engine.session(0), text) == fresh(engine, text)
    session = engine.session(0)
    answer(session, text[:100])
    with pytest.raises(RefusedError, match="173 tokens and 20 new ones do not fit into the 192"):
        answer(session, [*text, 1])
    assert session.tokens  # as it was
