"""A model compared with itself: cached, packed, padded, rematerialised, sharded by row."""

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


def make(spec):
    params = parameters(spec.build(jax.random.key(1)))
    # Larger than the initial weights, so that attention is far from uniform.
    params = jax.tree.map(lambda p: p * 6 if p.ndim > 1 else p, params)
    return params, bind(spec, params)


def tokens(B: int, T: int, seed: int = 0):
    return jax.random.randint(jax.random.key(seed), (B, T), 0, 61)


@each_spec
@each_batch
def test_ragged_cached_equals_uncached(spec, B: int) -> None:
    _, model = make(spec)
    lengths = np.arange(B) * 3 % 11 + 1  # ragged, 1 included
    new = 5
    rows = tokens(B, int(lengths.max()) + new)
    # Prefill with right padding, then decode token by token, each row at its own length.
    prompt = rows[:, : lengths.max()]
    real = (jnp.arange(prompt.shape[1]) < lengths[:, None]).astype(jnp.int32)
    cache = KVCache.create(spec, B, 40)
    hidden, cache = model(prompt, segment_ids_BT=real, cache=cache)
    got = [hidden[b, : lengths[b]] for b in range(B)]
    for i in range(new):
        step = rows[jnp.arange(B), lengths + i][:, None]
        hidden, cache = model(step, cache=cache)
        got = [jnp.concatenate([g, hidden[b]]) for b, g in enumerate(got)]
    np.testing.assert_array_equal(cache.lengths_B, lengths + new)
    for b in range(B):
        want, _ = model(rows[b : b + 1, : lengths[b] + new])
        np.testing.assert_allclose(got[b], want[0], atol=2e-5, rtol=1e-4)


@each_spec
def test_rows_that_are_done_do_not_move(spec) -> None:
    _, model = make(spec)
    rows = tokens(3, 9)
    _, cache = model(rows, cache=KVCache.create(spec, 3, 20))
    active = jnp.array([1, 0, 1], jnp.int32)[:, None]
    _, after = model(tokens(3, 1, seed=5), segment_ids_BT=active, cache=cache)
    np.testing.assert_array_equal(after.lengths_B, [10, 9, 10])
    for before_k, after_k in zip(cache.keys, after.keys, strict=True):
        np.testing.assert_array_equal(before_k[1], after_k[1])


@each_spec
def test_packed_equals_alone(spec) -> None:
    _, model = make(spec)
    a, b, c = tokens(1, 7), tokens(1, 1, seed=1), tokens(1, 12, seed=2)
    row = jnp.concatenate([a, b, c, jnp.zeros((1, 4), jnp.int32)], axis=1)
    segments = jnp.array([[1] * 7 + [2] + [3] * 12 + [0] * 4], jnp.int32)
    positions = jnp.array([[*range(7), 0, *range(12), *range(4)]], jnp.int32)
    packed, _ = model(row, segment_ids_BT=segments, positions_BT=positions)
    alone = jnp.concatenate([model(x)[0] for x in (a, b, c)], axis=1)
    np.testing.assert_allclose(packed[:, :20], alone, atol=1e-5, rtol=1e-4)
    assert np.isfinite(packed).all()


@each_spec
@each_batch
def test_padding_changes_nothing(spec, B: int) -> None:
    _, model = make(spec)
    lengths = np.arange(B) * 5 % 17 + 1
    rows = tokens(B, 24)
    segments = (jnp.arange(24) < lengths[:, None]).astype(jnp.int32)
    padded, _ = model(rows, segment_ids_BT=segments)
    other, _ = model(jnp.where(segments > 0, rows, 7), segment_ids_BT=segments)
    for b in range(B):
        want, _ = model(rows[b : b + 1, : lengths[b]])
        np.testing.assert_allclose(padded[b, : lengths[b]], want[0], atol=1e-5, rtol=1e-4)
        np.testing.assert_array_equal(padded[b, : lengths[b]], other[b, : lengths[b]])


@each_spec
def test_the_future_is_not_seen(spec) -> None:
    _, model = make(spec)
    row = tokens(1, 20)
    changed = row.at[0, 13].set((row[0, 13] + 1) % 61)
    before, after = model(row)[0], model(changed)[0]
    np.testing.assert_array_equal(before[:, :13], after[:, :13])
    assert np.abs(before[:, 13:] - after[:, 13:]).max() > 1e-3


@each_spec
def test_cache_overflow_is_an_error_and_writes_nothing(spec) -> None:
    params, model = make(spec)
    _, cache = model(tokens(2, 6), cache=KVCache.create(spec, 2, 8))
    with pytest.raises(ValueError, match=r"overflow in rows \[0, 1\]"):
        model(tokens(2, 3, seed=3), cache=cache)

    @jax.jit
    def decode(params, cache, active):
        return bind(spec, params)(tokens(2, 3, seed=3), segment_ids_BT=active, cache=cache)

    # Row 0 overflows, row 1 does not: only row 0 becomes NaN, and its old entries stay.
    active = jnp.array([[1, 1, 1], [1, 1, 0]], jnp.int32)
    hidden, after = decode(params, cache, active)
    assert np.isnan(hidden[0]).all() and np.isfinite(hidden[1]).all()
    np.testing.assert_array_equal(cache.keys[0][0, :, :6], after.keys[0][0, :, :6])
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        after.check()


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
    params, _ = make(spec)

    def gradient(policy: str):
        return jax.grad(lambda p: jnp.square(bind(spec, p, remat=policy)(tokens(2, 9))[0]).sum())

    plain, again = jax.jit(gradient("none"))(params), jax.jit(gradient(remat))(params)
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4)


def test_remat_keeps_less_for_the_backward_pass() -> None:
    spec = SPECS["llama"].replace(n_layers=8)
    params, _ = make(spec)

    def kept(policy: str) -> int:
        def loss(p):
            return jnp.square(bind(spec, p, remat=policy)(tokens(8, 48))[0]).sum()

        pullback = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return sum(x.size for x in jax.tree.leaves(pullback))

    none, dots, block = map(kept, ("none", "dots", "block"))
    assert 2 * block < dots < 0.8 * none


def test_dropout_is_off_without_keys_and_of_each_row_alone() -> None:
    spec = SPECS["gpt"].replace(dropout=0.5)
    params, model = make(spec)
    rows = tokens(4, 12)
    quiet, _ = model(rows)
    np.testing.assert_array_equal(quiet, bind(spec.replace(dropout=0.0), params)(rows)[0])
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
    params, model = make(spec)
    rows = tokens(2, 20)
    exact = model.logits(model(rows)[0])
    coarse_model = bind(spec, params, compute_dtype="bfloat16")
    hidden, _ = coarse_model(rows)
    coarse = coarse_model.logits(hidden)
    assert hidden.dtype == jnp.bfloat16 and coarse.dtype == jnp.float32
    assert np.abs(coarse - exact).mean() < 0.05 * np.abs(exact).mean()
