"""Sampling with the key/value cache against a loop that knows no cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.compilations import Compilations
from llm.core.mesh import make_mesh, replicated
from llm.core.spec import RefusedError
from llm.generate.engine import Engine
from llm.generate.specs import Sampling
from llm.models.binding import bind
from llm.models.parameter import parameters
from llm.models.specs import GPTSpec, LlamaSpec, RopeScalingSpec

SHAPE = {"vocab_size": 50, "max_seq_len": 96, "n_layers": 2, "d_model": 32, "init_std": 0.3}
MODELS = {
    "gpt": GPTSpec(n_heads=4, **SHAPE),
    "llama": LlamaSpec(
        n_heads=4,
        n_kv_heads=2,
        d_mlp=48,
        rope_scaling=RopeScalingSpec(factor=4.0, original_max_seq_len=16),
        **SHAPE,
    ),
}
PROMPTS = [[3], [7, 8, 9, 10, 11], list(range(30)), [1, 2]]
SAMPLED = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9}  # one program for all tests


def generate(spec, params, prompts, *, key, stop_ids=(), **settings) -> list[list[int]]:
    engine = Engine(spec, params)
    answers = engine.generate(prompts, Sampling(**settings), key=key, stop_ids=stop_ids)
    return [answer.ids for (answer,) in answers]


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest):
    spec = MODELS[request.param]
    return spec, parameters(spec.build(jax.random.key(0)))


@partial(jax.jit, static_argnums=0)
def all_logits(spec, params, tokens_BT):
    model = bind(spec, params)
    return model.logits(model(tokens_BT)[0])


def greedy_without_cache(spec, params, prompts, n: int) -> list[list[int]]:
    """The whole text again for every token; the definition of greedy decoding."""
    continuations = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(n):
            padded = np.zeros((1, spec.max_seq_len), np.int32)  # one shape, one compilation
            padded[0, : len(ids)] = ids
            ids.append(int(jnp.argmax(all_logits(spec, params, padded)[0, len(ids) - 1])))
        continuations.append(ids[len(prompt) :])
    return continuations


def test_greedy_equals_the_loop_without_a_cache(model) -> None:
    expected = greedy_without_cache(*model, PROMPTS, 12)
    got = generate(*model, PROMPTS, key=jax.random.key(0), max_new_tokens=12, temperature=0.0)
    assert got == expected
    assert len({tuple(row) for row in got}) == len(PROMPTS)  # else the test would see little


def test_one_new_token(model) -> None:
    got = generate(*model, PROMPTS, key=jax.random.key(0), max_new_tokens=1, temperature=0.0)
    assert got == greedy_without_cache(*model, PROMPTS, 1)


def test_to_the_last_position_that_the_model_has(model) -> None:
    prompts, n = [list(range(45)) * 2], SHAPE["max_seq_len"] - 90
    got = generate(*model, prompts, key=jax.random.key(0), max_new_tokens=n, temperature=0.0)
    assert got == greedy_without_cache(*model, prompts, n)


def test_a_row_does_not_depend_on_its_neighbours(model) -> None:
    among_others = generate(*model, PROMPTS, key=jax.random.key(3), **SAMPLED)
    other = generate(
        *model, [PROMPTS[0], [49] * 28, PROMPTS[2], [5]], key=jax.random.key(3), **SAMPLED
    )
    assert [other[0], other[2]] == [among_others[0], among_others[2]]
    assert generate(*model, PROMPTS[:1], key=jax.random.key(3), **SAMPLED) == among_others[:1]


def test_the_seed_decides(model) -> None:
    first = generate(*model, PROMPTS, key=jax.random.key(0), **SAMPLED)
    assert generate(*model, PROMPTS, key=jax.random.key(0), **SAMPLED) == first
    assert generate(*model, PROMPTS, key=jax.random.key(1), **SAMPLED) != first


def test_equal_prompts_get_different_texts(model) -> None:
    rows = generate(*model, [[1, 2]] * 4, key=jax.random.key(0), **SAMPLED)
    assert len({tuple(row) for row in rows}) == 4


@pytest.mark.parametrize(
    "places", [[(0, 0)], [(1, 6)], [(2, 11)], [(0, 4), (1, 7), (3, 2)]],
    ids=["at once", "on the way", "with the last token", "any of several"],
)  # fmt: skip
def test_ends_with_the_stop_token(model, places: list[tuple[int, int]]) -> None:
    whole = generate(*model, PROMPTS, key=jax.random.key(5), **SAMPLED)
    stops = [whole[row][column] for row, column in places]
    stopped = generate(*model, PROMPTS, key=jax.random.key(5), **SAMPLED, stop_ids=stops)
    for got, free in zip(stopped, whole, strict=True):
        end = next((i for i, token in enumerate(free) if token in stops), len(free) - 1)
        assert got == free[: end + 1]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_rows_are_given_to_those_who_wait(model, batch_size: int) -> None:
    """More prompts than rows, of mixed lengths, with answers of mixed lengths."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 50, size).tolist() for size in [1, 40, 3, 17, 60, 2, 9, 33, 5]]
    engine, sampling = Engine(*model), Sampling(max_new_tokens=36, top_p=0.9)
    arguments = {"key": jax.random.key(2), "stop_ids": [7, 11]}
    together = engine.generate(prompts, sampling, batch_size=16, **arguments)
    in_turn = engine.generate(prompts, sampling, batch_size=batch_size, **arguments)
    assert [a.ids for (a,) in in_turn] == [a.ids for (a,) in together]
    assert [a.stopped for (a,) in in_turn] == [a.ids[-1] in (7, 11) for (a,) in together]
    assert len({len(a.ids) for (a,) in together}) > 2  # else the test would see little


def test_rows_are_given_away_before_the_last_answer_has_ended(model, monkeypatch) -> None:
    B, places, used = 8, 0, 0
    plain = Engine.decode

    def watched(self, rows, *arguments):
        nonlocal places, used
        rows, written = plain(self, rows, *arguments)
        places += len(written.counts_B) * int(written.counts_B.max())
        used += int(written.counts_B.sum())
        return rows, written

    monkeypatch.setattr(Engine, "decode", watched)
    prompts = [[token] for token in range(50)] * 4
    answers = Engine(*model).generate(
        prompts, Sampling(max_new_tokens=20, temperature=2.0), key=jax.random.key(0),
        stop_ids=range(20), batch_size=B,
    )  # fmt: skip
    assert used == sum(len(answer.ids) for (answer,) in answers)
    assert 1.5 < used / len(prompts) < 5  # answers are short
    assert used > 0.6 * places


def test_samples_share_a_prompt(model) -> None:
    engine, sampling = Engine(*model), Sampling(**SAMPLED)
    key = jax.random.key(1)
    many = engine.generate(PROMPTS, sampling, key=key, n=5, batch_size=3)
    assert [len(row) for row in many] == [5] * len(PROMPTS)
    assert len({tuple(a.ids) for a in many[0]}) > 1
    one = engine.generate(PROMPTS, sampling, key=key)
    assert [row[0].ids for row in many] == [row[0].ids for row in one]


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.3}], ids=["plain", "penalty"])
def test_samples_that_say_the_same_are_one_text_to_the_model(model, settings, monkeypatch) -> None:
    """First few texts, then more than a quarter of the rows, then few rows: the same answers."""
    spec, params = model
    engine = Engine(spec, params)
    sampling = Sampling(max_new_tokens=14, temperature=0.25, **settings)
    widths: list[int | None] = []
    whole = engine.decode

    def decode(rows, sampling, stop_ids, steps, few, alike):
        widths.append(alike.width if alike else None)
        return whole(rows, sampling, stop_ids, steps, few, alike)

    monkeypatch.setattr(engine, "decode", decode)
    key, stop_ids = jax.random.key(2), [5, 11, 17]

    def answers() -> list:
        widths.clear()
        found = engine.generate(PROMPTS, sampling, key=key, n=16, batch_size=64, stop_ids=stop_ids)
        return [answer for of_one in found for answer in of_one]

    together = answers()
    assert widths[:2] == [16, 32]
    assert None in widths
    monkeypatch.setattr("llm.generate.batch._LEAST_ROWS", 1000)
    alone = answers()
    assert set(widths) == {None}
    assert len({tuple(answer.ids) for answer in alone}) > 16
    for one, other in zip(together, alone, strict=True):
        assert one.ids == other.ids
        assert one.stopped == other.stopped
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)


def test_a_prompt_is_prefilled_once(model, monkeypatch) -> None:
    engine = Engine(*model)
    prefilled: list[int] = []
    whole = engine.prefill
    monkeypatch.setattr(
        engine, "prefill", lambda p, *args: (prefilled.extend(map(len, p)), whole(p, *args))[1]
    )
    engine.generate(PROMPTS, Sampling(**SAMPLED), key=jax.random.key(1), n=7, batch_size=4)
    assert sorted(prefilled) == sorted(map(len, PROMPTS))


@pytest.mark.parametrize("ends", [[[9], [9, 8], [7]], [[9], [9], [9]], [[9], [], [3] * 20]])
def test_what_all_prompts_begin_with_is_prefilled_once(model, monkeypatch, ends) -> None:
    begin = list(range(40, 10, -1)) * 2
    prompts = [[*begin, *end] for end in ends]
    engine = Engine(*model)
    gone_through: list[int] = []
    whole = engine.prefill

    def prefill(prompts, rows, beginning=None, common=0):
        gone_through.extend(len(prompt) - 1 - common for prompt in prompts)
        return whole(prompts, rows, beginning, common)

    monkeypatch.setattr(engine, "prefill", prefill)
    settings = Sampling(max_new_tokens=12, temperature=0.0)
    together = engine.generate(prompts, settings, key=jax.random.key(0))
    assert sum(gone_through) < 100
    for prompt, (answer,) in zip(prompts, together, strict=True):
        ((alone,),) = engine.generate([prompt], settings, key=jax.random.key(0))
        assert answer.ids == alone.ids
        np.testing.assert_allclose(answer.log_probs, alone.log_probs, atol=2e-5)


def test_log_probs_are_those_of_the_model(model) -> None:
    spec, params = model
    sampling = Sampling(**SAMPLED | {"temperature": 0.7})
    for prompt, (answer,) in zip(
        PROMPTS, Engine(*model).generate(PROMPTS, sampling, key=jax.random.key(4)), strict=True
    ):
        ids = [*prompt, *answer.ids]
        padded = np.zeros((1, spec.max_seq_len), np.int32)
        padded[0, : len(ids)] = ids
        log_p_TV = jax.nn.log_softmax(all_logits(spec, params, padded)[0] / 0.7)
        places = np.arange(len(prompt) - 1, len(ids) - 1)
        expected = log_p_TV[places, np.asarray(answer.ids)]
        np.testing.assert_allclose(answer.log_probs, expected, atol=1e-4)


def test_penalty_counts_prompt_and_answer(model) -> None:
    prompt = list(range(20))
    settings = {"max_new_tokens": 25, "temperature": 0.0, "repetition_penalty": 1e4}
    (ids,) = generate(*model, [prompt], key=jax.random.key(0), **settings)
    spec, params = model
    text = list(prompt)
    for token in ids:
        padded = np.zeros((1, spec.max_seq_len), np.int32)
        padded[0, : len(text)] = text
        logits = np.array(all_logits(spec, params, padded)[0, len(text) - 1])
        seen = np.isin(np.arange(50), text)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / 1e4, logits[seen] * 1e4)
        assert token == int(logits.argmax())
        text.append(token)
    plain = generate(
        *model, [prompt], key=jax.random.key(0), **settings | {"repetition_penalty": 1.0}
    )
    assert ids != plain[0]


def test_nothing_is_compiled_once_warm(model) -> None:
    """For lists of other lengths, whose answers end elsewhere and leave other rows free."""
    spec = model[0].replace(max_seq_len=512)
    engine = Engine(spec, parameters(spec.build(jax.random.key(0))))
    rng = np.random.default_rng(0)

    def programs_for(prompts: int, longest: int, stop_ids: list[int]) -> int:
        sizes = rng.integers(1, longest, prompts)
        texts = [rng.integers(0, 50, size).tolist() for size in sizes]
        key, sampling = jax.random.key(sizes[0]), Sampling(max_new_tokens=100, top_p=0.9)
        sampling = sampling.replace(temperature=1 + sizes[0] / 400)
        with Compilations() as programs:
            engine.generate(texts, sampling, key=key, batch_size=16, stop_ids=stop_ids)
        return programs.count

    # One and four answers are left over at the end; a batch is shrunk to their number.
    warming = [programs_for(n, 400, []) for n in (65, 68)]
    # Caches begin with as much room as the first texts need.
    warming += [programs_for(60, longest, [3]) for longest in (32, 96, 224, 400, 400, 400)]
    assert 0 < sum(warming) < 40, warming
    assert [programs_for(n, 400, [3]) for n in rng.integers(60, 68, 6)] == [0] * 6


def test_an_answer_ends_when_the_caller_says_so(model) -> None:
    engine, sampling = Engine(*model), Sampling(max_new_tokens=90)
    looks: list[int] = []

    def is_over(ids: list[int]) -> bool:
        looks.append(len(ids))
        return len(ids) > 40

    ((answer,),) = engine.generate([[1]], sampling, key=jax.random.key(0), is_over=is_over)
    assert 40 < len(answer.ids) < 90 and answer.stopped
    assert len(looks) <= 4  # not for every token


def test_bf16_is_near_fp32(model) -> None:
    spec, params = model
    sampling = Sampling(max_new_tokens=6, temperature=0.0)
    whole = Engine(spec, params).generate(PROMPTS, sampling, key=jax.random.key(0))
    half = Engine(spec, params, compute_dtype="bfloat16")
    assert half.prefill(PROMPTS, 4).keys[0].dtype == jnp.bfloat16
    other = Engine(spec, params, compute_dtype="bfloat16", cache_dtype="float32")
    assert other.prefill(PROMPTS, 4).keys[0].dtype == jnp.float32
    for engine in half, other:
        answers = engine.generate(PROMPTS, sampling, key=jax.random.key(0))
        for (a,), (b,) in zip(whole, answers, strict=True):
            assert abs(a.log_probs[0] - b.log_probs[0]) < 0.1


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1] * 90], {"max_new_tokens": 7}, "90 tokens and 7 new ones do not fit into the 96"),
        ([[1], []], {}, "every prompt needs at least one token"),
        ([], {}, "every prompt needs at least one token"),
        ([[50]], {}, "token 50: the model has tokens 0 to 49"),
        ([[-1]], {}, "token -1: the model has tokens 0 to 49"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0: expected a number greater than 0"),
    ],
)
def test_refused(prompts, settings, message: str) -> None:
    spec = MODELS["gpt"]
    with pytest.raises(RefusedError, match=message):
        generate(spec, {}, prompts, **({"key": jax.random.key(0), "max_new_tokens": 4} | settings))


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 1), (1, 2, 2)], ids=str)
def test_texts_are_split_over_devices_and_stay_what_they_are(model, shape, monkeypatch) -> None:
    spec, params = model
    mesh = make_mesh(jax.devices()[:4], *shape)
    places = []
    plain = Engine.decode

    def watched(self, rows, *arguments):
        places.append((len(rows.last_B), rows.cache.keys[0].sharding))
        rows, written = plain(self, rows, *arguments)
        places.append((len(rows.last_B), rows.cache.keys[0].sharding))
        return rows, written

    monkeypatch.setattr(Engine, "decode", watched)
    settings = {"key": jax.random.key(5), "n": 3, "batch_size": 8}
    sampling = Sampling(max_new_tokens=40, temperature=1.0)
    alone = Engine(spec, params).generate(PROMPTS, sampling, **settings)
    n = len(places)
    shards = jax.device_put(params, replicated(mesh))
    split = Engine(spec, shards, mesh=mesh).generate(PROMPTS, sampling, **settings)
    assert [[a.ids for a in of_one] for of_one in split] == [
        [a.ids for a in of_one] for of_one in alone
    ]
    for rows, place in places[n:]:  # rows that do not divide are whole on each device
        assert place.is_fully_replicated == (rows % (shape[0] * shape[1]) > 0)
    assert any(not place.is_fully_replicated for _, place in places[n:])
