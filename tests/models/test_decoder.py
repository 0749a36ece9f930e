"""A model compared with itself: cached, packed, padded, rematerialised, sharded by row."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.binding import bind
from llm.models.cache import KVCache
from llm.models.parameter import logical_axes, parameters
from llm.models.specs import GPTSpec, LlamaSpec

H = 4  # query heads; B == H and B == H + 1 reveal a mask that broadcasts over the wrong axis
SPECS = {
    "gpt": GPTSpec(vocab_size=61, max_seq_len=48, n_layers=2, d_model=32, n_heads=H),
    "gpt sinusoidal": GPTSpec(
        vocab_size=61, max_seq_len=48, n_layers=2, d_model=32, n_heads=H, positions="sinusoidal"
    ),
    "llama": LlamaSpec(
        vocab_size=61, max_seq_len=48, n_layers=2, d_model=32, n_heads=H, n_kv_heads=2, d_mlp=48
    ),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
each_batch = pytest.mark.parametrize("B", [1, 3, H, H + 1])


@cache
def weights(spec):
    params = parameters(spec.build(jax.random.key(1)))
    # Larger than the initial weights, so that attention is far from uniform.
    return jax.tree.map(lambda p: p * 6 if p.ndim > 1 else p, params)


@partial(jax.jit, static_argnums=0)
def compiled(spec, params, tokens, cache=None, **inputs):
    """One program for each spec and shape, whatever test it is in."""
    return bind(spec, params)(tokens, cache=cache, **inputs)


def make(spec):
    params = weights(spec)
    return params, partial(compiled, spec, params)


def tokens(B: int, T: int, seed: int = 0):
    return np.random.default_rng(seed).integers(0, 61, (B, T), dtype=np.int32)


@each_spec
@each_batch
def test_ragged_cached_equals_uncached(spec, B: int) -> None:
    _, model = make(spec)
    lengths = np.arange(B) * 3 % 11 + 1  # ragged, 1 included
    new = 5
    rows = tokens(B, int(lengths.max()) + new)
    # Prefill with right padding, then decode token by token, each row at its own length.
    prompt = rows[:, : lengths.max()]
    real = (np.arange(prompt.shape[1]) < lengths[:, None]).astype(np.int32)
    cache = KVCache.create(spec, B, 40)
    hidden, cache = model(prompt, cache, segment_ids_BT=real)
    got = [np.asarray(hidden)[b, : lengths[b]] for b in range(B)]
    for i in range(new):
        step = rows[np.arange(B), lengths + i][:, None]
        hidden, cache = model(step, cache)
        got = [np.concatenate([g, np.asarray(hidden)[b]]) for b, g in enumerate(got)]
    np.testing.assert_array_equal(cache.lengths_B, lengths + new)
    want = np.asarray(model(rows)[0])
    for b in range(B):
        np.testing.assert_allclose(got[b], want[b, : lengths[b] + new], atol=2e-5, rtol=1e-4)


@each_spec
def test_rows_that_are_done_do_not_move(spec) -> None:
    _, model = make(spec)
    rows = tokens(3, 9)
    _, cache = model(rows, KVCache.create(spec, 3, 20))
    active = np.array([1, 0, 1], np.int32)[:, None]
    _, after = model(tokens(3, 1, seed=5), cache, segment_ids_BT=active)
    np.testing.assert_array_equal(after.lengths_B, [10, 9, 10])
    for before_k, after_k in zip(cache.keys, after.keys, strict=True):
        np.testing.assert_array_equal(np.asarray(before_k)[1], np.asarray(after_k)[1])


@each_spec
def test_packed_equals_alone(spec) -> None:
    _, model = make(spec)
    a, b, c = tokens(1, 7), tokens(1, 1, seed=1), tokens(1, 12, seed=2)
    row = np.concatenate([a, b, c, np.zeros((1, 4), np.int32)], axis=1)
    segments = np.array([[1] * 7 + [2] + [3] * 12 + [0] * 4], np.int32)
    positions = np.array([[*range(7), 0, *range(12), *range(4)]], np.int32)
    packed = np.asarray(model(row, segment_ids_BT=segments, positions_BT=positions)[0])
    alone = np.concatenate([model(x)[0] for x in (a, b, c)], axis=1)
    np.testing.assert_allclose(packed[:, :20], alone, atol=1e-5, rtol=1e-4)
    assert np.isfinite(packed).all()


@each_spec
@each_batch
def test_padding_changes_nothing(spec, B: int) -> None:
    _, model = make(spec)
    lengths = np.arange(B) * 5 % 17 + 1
    rows = tokens(B, 24)
    segments = (np.arange(24) < lengths[:, None]).astype(np.int32)
    padded = np.asarray(model(rows, segment_ids_BT=segments)[0])
    other = np.asarray(model(np.where(segments > 0, rows, 7), segment_ids_BT=segments)[0])
    for b in range(B):
        want, _ = model(rows[b : b + 1, : lengths[b]])
        np.testing.assert_allclose(padded[b, : lengths[b]], want[0], atol=1e-5, rtol=1e-4)
        np.testing.assert_array_equal(padded[b, : lengths[b]], other[b, : lengths[b]])


@each_spec
def test_the_future_is_not_seen(spec) -> None:
    _, model = make(spec)
    row = tokens(1, 20)
    changed = row.copy()
    changed[0, 13] = (row[0, 13] + 1) % 61
    before, after = (np.asarray(model(x)[0]) for x in (row, changed))
    np.testing.assert_array_equal(before[:, :13], after[:, :13])
    assert np.abs(before[:, 13:] - after[:, 13:]).max() > 1e-3


@each_spec
def test_cache_overflow_is_an_error_and_writes_nothing(spec) -> None:
    _, model = make(spec)
    _, cache = model(tokens(2, 6), KVCache.create(spec, 2, 8))
    # Row 0 overflows, row 1 does not: only row 0 becomes NaN, and its old entries stay.
    active = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
    hidden, after = model(tokens(2, 3, seed=3), cache, segment_ids_BT=active)
    assert np.isnan(hidden[0]).all() and np.isfinite(hidden[1]).all()
    before_k, after_k = (np.asarray(x.keys[0])[0, :, :, :6] for x in (cache, after))
    np.testing.assert_array_equal(before_k, after_k)
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        after.check()


def test_cache_overflow_is_said_at_once_where_nothing_is_compiled() -> None:
    params, model = make(SPECS["llama"])
    _, cache = model(tokens(2, 6), KVCache.create(SPECS["llama"], 2, 8))
    with pytest.raises(ValueError, match=r"overflow in rows \[0, 1\]"):
        bind(SPECS["llama"], params)(jnp.asarray(tokens(2, 3, seed=3)), cache=cache)


def test_too_long_is_refused() -> None:
    spec = SPECS["gpt"]
    _, model = make(spec)
    with pytest.raises(ValueError, match="49 tokens: the model sees 48"):
        model(tokens(1, 49))
    with pytest.raises(ValueError, match="capacity 49"):
        KVCache.create(spec, 1, 49)
    with pytest.raises(ValueError, match="leave it out"):
        cache = KVCache.create(spec, 1, 8)
        model(tokens(1, 2), positions_BT=jnp.zeros((1, 2), jnp.int32), cache=cache)


@each_spec
@pytest.mark.parametrize("remat", ["block", "dots"])
def test_rematerialisation_changes_no_gradient(spec, remat: str) -> None:
    params = weights(spec)

    @partial(jax.jit, static_argnums=0)
    def gradient(policy: str, params, rows):
        return jax.grad(lambda p: jnp.square(bind(spec, p, remat=policy)(rows)[0]).sum())(params)

    plain, again = (gradient(policy, params, tokens(2, 9)) for policy in ("none", remat))
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4)


def test_remat_keeps_less_for_the_backward_pass() -> None:
    spec = SPECS["llama"].replace(n_layers=8)
    params, rows = weights(spec), jnp.asarray(tokens(8, 48))

    def kept(policy: str) -> int:
        def loss(p):
            return jnp.square(bind(spec, p, remat=policy)(rows)[0]).sum()

        pullback = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return sum(x.size for x in jax.tree.leaves(pullback))

    none, dots, block = map(kept, ("none", "dots", "block"))
    assert 2 * block < dots < 0.8 * none


def test_dropout_is_off_without_keys_and_of_each_row_alone() -> None:
    spec = SPECS["gpt"].replace(dropout=0.5)
    params, model = make(spec)
    rows = tokens(4, 12)
    quiet, _ = model(rows)
    np.testing.assert_array_equal(quiet, compiled(spec.replace(dropout=0.0), params, rows)[0])
    keys = jax.random.split(jax.random.key(3), 4)
    noisy, _ = model(rows, dropout_keys_B=keys)
    assert np.abs(noisy - quiet).max() > 0.1
    alone, _ = model(rows[2:3], dropout_keys_B=keys[2:3])
    np.testing.assert_allclose(noisy[2:3], alone, atol=1e-5, rtol=1e-4)
    other, _ = model(rows, dropout_keys_B=jax.random.split(jax.random.key(4), 4))
    assert np.abs(noisy - other).max() > 0.1


def test_gpt2_initialisation() -> None:
    spec = GPTSpec(vocab_size=300, max_seq_len=64, n_layers=8, d_model=128, n_heads=4)
    params = parameters(spec.build(jax.random.key(0)))
    residual = 0.02 / (2 * 8) ** 0.5
    for block in params["blocks"].values():
        for name, std in (("qkv", 0.02), ("up", 0.02), ("out", residual), ("down", residual)):
            assert np.std(block[name]["kernel"]) == pytest.approx(std, rel=0.05)
            assert not np.any(block[name]["bias"])
        assert (block["mlp_norm"]["scale"] == 1).all()
    assert np.std(params["embedding"]) == pytest.approx(0.02, rel=0.05)
    assert not np.array_equal(
        params["blocks"][0]["up"]["kernel"], params["blocks"][1]["up"]["kernel"]
    )


@each_spec
def test_every_parameter_names_its_axes(spec) -> None:
    model = spec.build(jax.random.key(0))
    axes, params = logical_axes(model), parameters(model)
    named = jax.tree.map(len, axes, is_leaf=lambda x: isinstance(x, tuple))
    assert named == jax.tree.map(jnp.ndim, params)


@each_spec
def test_matmul_parameters_and_flops(spec) -> None:
    params = parameters(spec.build(jax.random.key(0)))
    in_blocks = sum(p.size for p in jax.tree.leaves(params["blocks"]) if p.ndim == 2)
    assert spec.n_matmul_params == in_blocks + params["embedding"].size
    attention = 12 * spec.n_layers * spec.n_heads * spec.head_size * 32
    assert spec.flops_per_token(32) == 6 * spec.n_matmul_params + attention


@each_spec
def test_bf16_is_close_to_fp32(spec) -> None:
    params, rows = weights(spec), tokens(2, 20)

    @partial(jax.jit, static_argnums=0)
    def in_type(compute_dtype: str, params, rows):
        model = bind(spec, params, compute_dtype=compute_dtype)
        hidden, _ = model(rows)
        return hidden, model.logits(hidden)

    _, exact = in_type("float32", params, rows)
    hidden, coarse = in_type("bfloat16", params, rows)
    assert hidden.dtype == jnp.bfloat16 and coarse.dtype == jnp.float32
    assert np.abs(coarse - exact).mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.parametrize("B", [1, 2, H])
def test_bf16_weights_are_read_as_they_are(B: int) -> None:
    """XLA for CPUs makes both sides of most products fp32: all weights, for one token."""
    spec = LlamaSpec(
        vocab_size=640, max_seq_len=64, n_layers=1, d_model=256, n_heads=4, n_kv_heads=4, d_mlp=384
    )
    params = weights(spec)

    @jax.jit
    def one_token(params, tokens_B1, cache):
        model = bind(spec, params, compute_dtype="bfloat16")
        hidden, cache = model(tokens_B1, cache=cache)
        return model.logits(hidden), cache

    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16) if p.ndim > 1 else p, params)
    cache = KVCache.create(spec, B, 64)
    tokens_B1 = jnp.arange(B)[:, None]
    program = one_token.lower(half, tokens_B1, cache).compile().as_text()
    program = program.split("ENTRY")[1]  # of fusions, only what they hand on
    large = {f"f32[{a},{b}]" for a in (256, 384, 640) for b in (256, 384, 640)}
    assert not {shape for shape in large if shape in program}
    alone = [
        one_token(half, tokens_B1[row : row + 1], KVCache.create(spec, 1, 64))[0]
        for row in range(B)
    ]
    together, _ = one_token(half, tokens_B1, cache)
    np.testing.assert_allclose(
        together, jnp.concatenate(alone), rtol=0.02, atol=0.02 * float(jnp.abs(together).max())
    )
