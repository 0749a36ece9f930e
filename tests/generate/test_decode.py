"""Sampling with the key/value cache against a loop that knows no cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.spec import RefusedError
from llm.generate.decode import generate
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


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1] * 90], {"max_new_tokens": 7}, "90 tokens and 7 new ones do not fit into the 96"),
        ([[1], []], {}, "every prompt needs at least one token"),
        ([], {}, "every prompt needs at least one token"),
        ([[50]], {}, "token 50: the model has tokens 0 to 49"),
        ([[-1]], {}, "token -1: the model has tokens 0 to 49"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0: expected at least 1"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0: expected 0 or more"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan: expected 0 or more"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0: expected more than 0"),
    ],
)
def test_refused(prompts, settings, message: str) -> None:
    spec = MODELS["gpt"]
    with pytest.raises(RefusedError, match=message):
        generate(spec, {}, prompts, **({"key": jax.random.key(0), "max_new_tokens": 4} | settings))
