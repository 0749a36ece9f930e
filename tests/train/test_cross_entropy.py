"""The chunked cross-entropy against the plain one, value and gradient."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.mesh import make_mesh, replicated, rows_sharding
from llm.train.cross_entropy import cross_entropy
from llm.train.log_probs import token_scores

M, D, V = 37, 12, 91


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (M, D), dtype)
    head = jax.random.normal(keys[1], (V, D), dtype)
    targets = jax.random.randint(keys[2], (M,), 0, V)
    weights = (jax.random.uniform(keys[3], (M,)) > 0.3).astype(jnp.float32)
    return hidden, head, targets, weights


def plain(hidden, head, targets, weights, z_loss=0.0, label_smoothing=0.0):
    logits = hidden.astype(jnp.float32) @ head.T.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    goal = jax.nn.one_hot(targets, V) * (1 - label_smoothing) + label_smoothing / V
    losses = -(goal * jax.nn.log_softmax(logits)).sum(-1) + z_loss * log_z**2
    return (losses * weights).sum()


@pytest.mark.parametrize("chunk", [1, 8, 37, 64])
@pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.0, 0.0), (1e-2, 0.0), (1e-3, 0.1)])
def test_value_and_gradients(chunk: int, z_loss: float, label_smoothing: float) -> None:
    options = {"z_loss": z_loss, "label_smoothing": label_smoothing}
    hidden, head, targets, weights = inputs()

    def ours(h, w):
        # Scaled, so that a backward pass that forgets the incoming gradient is caught.
        return 0.3 * cross_entropy(h, w, targets, weights, chunk=chunk, **options).objective

    def theirs(h, w):
        return 0.3 * plain(h, w, targets, weights, **options)

    got, got_grads = jax.value_and_grad(ours, (0, 1))(hidden, head)
    want, want_grads = jax.value_and_grad(theirs, (0, 1))(hidden, head)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for g, w in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5, rtol=1e-5)
    sums = cross_entropy(hidden, head, targets, weights, chunk=chunk, **options)
    np.testing.assert_allclose(sums.objective * 0.3, want, rtol=1e-6)
    np.testing.assert_allclose(sums.nll, plain(hidden, head, targets, weights), rtol=1e-6)


def test_the_plain_likelihood_carries_no_gradient() -> None:
    hidden, head, targets, weights = inputs()
    grad = jax.grad(lambda h: cross_entropy(h, head, targets, weights, chunk=8).nll)(hidden)
    assert not np.any(grad)


def test_nothing_counts() -> None:
    hidden, head, targets, weights = inputs()
    loss, grad = jax.value_and_grad(
        lambda h: cross_entropy(h, head, targets, 0 * weights, chunk=8).objective
    )(hidden)
    assert loss == 0 and not np.any(grad)


def test_huge_logits_stay_finite() -> None:
    hidden, head, targets, weights = inputs()
    loss, grad = jax.value_and_grad(
        lambda h: cross_entropy(1e4 * h, head, targets, weights, chunk=8).objective
    )(hidden)
    assert np.isfinite(loss) and np.isfinite(grad).all()


def test_bf16() -> None:
    hidden, head, targets, weights = inputs(jnp.bfloat16)

    def ours(h, w):
        return cross_entropy(h, w, targets, weights, chunk=8).objective

    loss, grads = jax.value_and_grad(ours, (0, 1))(hidden, head)
    want, want_grads = jax.value_and_grad(plain, (0, 1))(hidden, head, targets, weights)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, want, rtol=1e-3)
    for g, w in zip(grads, want_grads, strict=True):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            g.astype(jnp.float32), w.astype(jnp.float32), atol=0.05, rtol=0.05
        )


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of every value in a jaxpr and those inside it."""
    found = {tuple(v.aval.shape) for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape")}
    for inner in _inner(jaxpr):
        found |= shapes_in(inner)
    return found


def _inner(jaxpr):
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(value, "jaxpr"):
                yield value.jaxpr
            elif hasattr(value, "eqns"):
                yield value


def test_all_logits_never_exist() -> None:
    hidden, head, targets, weights = inputs()

    def ours(h, w):
        return cross_entropy(h, w, targets, weights, chunk=8).objective

    shapes = shapes_in(jax.make_jaxpr(jax.value_and_grad(ours, (0, 1)))(hidden, head).jaxpr)
    assert (8, V) in shapes  # the walk sees a chunk's logits ...
    assert not [s for s in shapes if V in s and np.prod(s) > max(8 * V, V * D)]  # ... and no more


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_tokens_in_shards_count_as_others_do(chunk: int) -> None:
    hidden, head, targets, weights = (x[:36] for x in inputs())

    def loss(hidden, shards):
        sums = cross_entropy(hidden, head, targets, weights, chunk=chunk, shards=shards)
        return sums.objective

    alone, gradient = jax.value_and_grad(loss)(hidden, 1)
    for shards in (2, 4):
        value, its_gradient = jax.value_and_grad(loss)(hidden, shards)
        np.testing.assert_allclose(value, alone, rtol=1e-6)
        np.testing.assert_allclose(its_gradient, gradient, rtol=1e-5, atol=1e-5)


def _logits_of(program: jax.stages.Compiled, vocab: int) -> set[int]:
    """Numbers of tokens whose logits a device holds in one array."""
    shapes = re.findall(rf"f32\[([\d,]+),{vocab}\]", program.as_text())
    return {math.prod(map(int, shape.split(","))) for shape in shapes}


def test_each_device_works_out_logits_of_its_own_tokens() -> None:
    mesh = make_mesh(jax.devices(), 4, 2)
    rows, T, chunk = 16, 8, 4
    sharding = rows_sharding(mesh)

    def placed(shape, dtype=jnp.float32, sharding=sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    head = placed((V, D), sharding=replicated(mesh))

    def next_token(hidden_BTD, head_VD, targets_BT):
        return cross_entropy(
            hidden_BTD.reshape(-1, D), head_VD, targets_BT.ravel(), jnp.ones(rows * T),
            chunk=chunk, shards=8,
        ).objective  # fmt: skip

    def policy(hidden_BTD, head_VD, targets_BT):
        places = jnp.broadcast_to(jnp.arange(T), (rows, T))
        counts = jnp.full(rows, T)
        scores = token_scores(hidden_BTD, head_VD, places, targets_BT, counts, chunk=8 * chunk)
        return scores.log_probs.sum()

    for loss in (next_token, policy):
        gradient = jax.jit(jax.grad(loss, (0, 1)))
        program = gradient.lower(placed((rows, T, D)), head, placed((rows, T), jnp.int32)).compile()
        found = _logits_of(program, V)
        assert chunk in found and max(found) == chunk, found
