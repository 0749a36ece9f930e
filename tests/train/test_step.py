"""One step: accumulation, clipping, decay, averages, sharding."""

import itertools
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.core.machine import COMPILER_OPTIONS
from llm.core.mesh import make_mesh, put_rows
from llm.models.specs import GPTSpec, LlamaSpec
from llm.train.next_token import NextToken
from llm.train.optimizer_specs import AdamWSpec, MuonSpec
from llm.train.state import StateFactory
from llm.train.step import Stepper

MODEL = LlamaSpec(
    vocab_size=64, max_seq_len=32, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_mlp=64
)


def parts(model=MODEL, optimizer=None, mesh=None, **changes):
    optimizer = optimizer or AdamWSpec(lr=1e-2)
    options = {
        "micro_batches": 1,
        "compute_dtype": "float32",
        "grad_clip": 1.0,
        "ema_decay": None,
        "remat": "none",
        "attention": "xla",
        "freeze": (),
    } | changes
    rates = {name: optax.constant_schedule(peak) for name, peak in optimizer.peaks.items()}
    stepper = Stepper(
        model=model, objective=NextToken(16, 0.0, 0.0), optimizer=optimizer,
        schedule=optax.constant_schedule, seed=0, mesh=mesh, **options,
    )  # fmt: skip
    factory = StateFactory(
        model=model, optimizer=optimizer.build(rates), seed=0,
        use_ema=options["ema_decay"] is not None,
        mesh=mesh or make_mesh(jax.devices()[:1], 1, 1),
        freeze=options["freeze"],
    )  # fmt: skip
    return stepper, factory


def batch(rows: int = 8, T: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with two documents and padding of different lengths."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 64, (rows, T + 1)).astype(np.int32)
    first, second = rng.integers(1, T // 2, rows), rng.integers(0, T // 2, rows)
    column = np.arange(T)[None]
    segments = (column < (first + second)[:, None]).astype(np.int32)
    segments += (column >= first[:, None]) & (segments > 0)
    positions = np.where(segments == 2, column - first[:, None], column).astype(np.int32)
    return {
        "tokens": ids[:, :-1], "targets": ids[:, 1:],
        "segment_ids": segments.astype(np.int32), "positions": positions,
        "loss_mask": (segments > 0).astype(np.int32),
    }  # fmt: skip


def close(a, b, **tolerance) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@cache
def accumulated(micro_batches: int):
    model = GPTSpec(
        vocab_size=64, max_seq_len=32, n_layers=1, d_model=32, n_heads=4, dropout=0.2
    )  # dropout too: keys are per row
    stepper, factory = parts(model, micro_batches=micro_batches)
    return jax.jit(stepper._gradients)(factory.fresh().params, batch(), keys(8))


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_accumulation_equals_the_big_batch(micro_batches: int) -> None:
    (big, big_sums), (small, small_sums) = accumulated(1), accumulated(micro_batches)
    close(small, big, atol=1e-6 * float(optax.tree.norm(big)))
    close(small_sums, big_sums, rtol=1e-6)


def keys(rows: int):
    return jax.random.split(jax.random.key(0), rows)


def test_loss_is_the_mean_over_tokens_and_padding_rows_change_nothing() -> None:
    stepper, factory = parts()
    rows = batch()
    more = {k: np.concatenate([v, np.zeros((8, 16), np.int32)]) for k, v in rows.items()}
    step = jax.jit(stepper.train_step)
    state, metrics = step(factory.fresh(), rows)
    other, other_metrics = step(factory.fresh(), more)
    close(other_metrics, metrics, rtol=1e-5)
    close(other.params, state.params, atol=1e-5)
    assert metrics["tokens"] == (rows["segment_ids"] > 0).sum()
    # An untrained model knows nothing: the loss is the log of the vocabulary.
    assert metrics["train/loss"] == pytest.approx(np.log(64), abs=0.2)


def test_a_batch_in_which_nothing_counts_stays_finite() -> None:
    stepper, factory = parts()
    empty = {k: np.zeros((4, 16), np.int32) for k in batch()}
    state, metrics = jax.jit(stepper.train_step)(factory.fresh(), empty)
    assert metrics["train/loss"] == 0 and metrics["train/grad_norm"] == 0
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))


def test_clipping() -> None:
    # With plain gradient descent at rate 1 the update is the clipped gradient itself.
    from llm.train.optimizer_specs import OptaxSpec

    for clip in (1e-2, None):
        stepper, factory = parts(optimizer=OptaxSpec(lr=1.0, optimizer="sgd"), grad_clip=clip)
        before = factory.fresh()
        after, metrics = jax.jit(stepper.train_step)(before, batch())
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, before.params))
        want = min(clip or np.inf, float(metrics["train/grad_norm"]))
        assert moved == pytest.approx(want, rel=1e-3)
    assert metrics["train/grad_norm"] > 1e-2


def test_averaged_weights() -> None:
    stepper, factory = parts(ema_decay=0.9)
    step = jax.jit(stepper.train_step)
    state = factory.fresh()
    average = state.params
    for seed in range(3):
        state, _ = step(state, batch(seed=seed))
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, state.params)
    close(state.ema, average, atol=1e-6)
    assert state.eval_params is state.ema


def test_weight_decay_shrinks_matrices_only() -> None:
    stepper, factory = parts(optimizer=AdamWSpec(lr=1e-2, weight_decay=0.5))
    state = factory.fresh()
    empty = {k: np.zeros((4, 16), np.int32) for k in batch()}  # no gradient, decay alone
    after, _ = jax.jit(stepper.train_step)(state, empty)
    for before, now in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True
    ):
        np.testing.assert_allclose(now, before * (1 - 0.005 if before.ndim > 1 else 1), rtol=1e-5)


def test_muon_takes_block_matrices_and_adam_the_rest() -> None:
    stepper, factory = parts(optimizer=MuonSpec(lr=1e-2, adam_lr=1e-3, weight_decay=0.0))
    before = factory.fresh()
    after, _ = jax.jit(stepper.train_step)(before, batch())
    change = jax.tree.map(jnp.subtract, after.params, before.params)
    # Adam's first step moves every touched entry by its learning rate.
    moved = np.abs(change["final_norm"]["scale"])
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-2)
    assert np.abs(change["embedding"]).max() == pytest.approx(1e-3, rel=1e-2)
    # Muon's step is near orthogonal: all singular values are about equal.
    singular = np.linalg.svd(change["blocks"][0]["gate"]["kernel"], compute_uv=False)
    assert singular.max() / singular.min() < 3
    # ... and its root mean square is 0.2 times the learning rate.
    rms = np.sqrt(np.square(change["blocks"][0]["gate"]["kernel"]).mean())
    assert rms == pytest.approx(0.2 * 1e-2, rel=0.3)


@cache
def three_steps(optimizer, shape):
    """Losses and weights, of a model with groups of heads."""
    mesh = make_mesh(jax.devices()[: math.prod(shape)], *shape)
    stepper, factory = parts(optimizer=optimizer, mesh=mesh, micro_batches=2)
    state = factory.fresh()
    if shape[1] > 1:  # weights and optimizer state really are split
        for tree in (state.params, state.opt_state):
            split = [x for x in jax.tree.leaves(tree) if x.ndim == 2]
            assert any(not x.sharding.is_fully_replicated for x in split)
    step = jax.jit(stepper.train_step, donate_argnums=0, out_shardings=(factory.shardings, None))
    losses = []
    for seed in range(3):
        state, metrics = step(state, put_rows(batch(seed=seed), mesh))
        losses.append(float(metrics["train/loss"]))
    return losses, jax.tree.map(np.asarray, state.params)


OPTIMIZERS = {"adamw": AdamWSpec(lr=1e-2), "muon": MuonSpec(lr=1e-2)}


@pytest.mark.parametrize(
    ("optimizer", "shape"),
    [
        ("adamw", (1, 2, 2)),
        ("muon", (1, 2, 2)),
        ("muon", (2, 2, 1)),
        ("muon", (1, 4, 1)),
        ("muon", (4, 1, 1)),
    ],
)
def test_a_mesh_computes_what_one_device_computes(optimizer, shape) -> None:
    losses, weights = three_steps(OPTIMIZERS[optimizer], shape)
    on_one, weights_on_one = three_steps(OPTIMIZERS[optimizer], (1, 1, 1))
    np.testing.assert_allclose(losses, on_one, rtol=1e-5)
    close(weights, weights_on_one, atol=2e-4)


def metrics_on(shape: tuple[int, int, int], steps: int) -> dict[str, list[float]]:
    mesh = make_mesh(jax.devices()[: math.prod(shape)], *shape)
    changes = {"mesh": mesh, "optimizer": AdamWSpec(lr=1e-3), "ema_decay": 0.9}
    stepper, factory = parts(GPTSpec(
        vocab_size=64, max_seq_len=32, n_layers=1, d_model=32, n_heads=8, dropout=0.1
    ), **changes)  # fmt: skip
    state = factory.fresh()
    step = jax.jit(stepper.train_step, donate_argnums=0, out_shardings=(factory.shardings, None))
    found: dict[str, list[float]] = {}
    for seed in range(steps):
        state, metrics = step(state, put_rows(batch(seed=seed), mesh))
        for name, value in metrics.items():
            found.setdefault(name, []).append(float(value))
    return found


EIGHT = [s for s in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(s) == 8]


@pytest.fixture(scope="module")
def metrics_on_one() -> dict[str, list[float]]:
    return metrics_on((1, 1, 1), 20)


@pytest.mark.parametrize("shape", EIGHT, ids=str)
def test_every_mesh_of_eight_devices_computes_the_same(shape, metrics_on_one) -> None:
    found = metrics_on(shape, 20)
    assert found.keys() == metrics_on_one.keys() > {"train/loss", "train/grad_norm"}
    for name, values in found.items():
        np.testing.assert_allclose(values, metrics_on_one[name], rtol=1e-5, err_msg=name)


def test_options_of_the_compiler_save_memory() -> None:
    """Of several layers, attention's weights must not all be there at once."""

    def temporary(n_layers: int) -> int:
        stepper, factory = parts(MODEL.replace(n_layers=n_layers, max_seq_len=256))
        lowered = jax.jit(stepper.train_step).lower(factory.fresh(), batch(T=256))
        compiled = lowered.compile(compiler_options=COMPILER_OPTIONS["cpu"])
        return compiled.memory_analysis().temp_size_in_bytes

    of_a_layer = (temporary(6) - temporary(2)) / 4
    weights = 8 * 4 * 256 * 256 * 4  # fp32, of 8 rows and 4 heads
    # The rest of its activations is as much; jax 0.10 without the options needs twice as much.
    assert of_a_layer < 1.4 * weights


@pytest.mark.parametrize("optimizer", [AdamWSpec, MuonSpec])
def test_one_program_serves_every_learning_rate(optimizer) -> None:
    programs = set()
    for lr in (1e-2, 3e-3):
        stepper, factory = parts(optimizer=optimizer(lr=lr))
        peaks = {
            name: np.asarray(peak, np.float32) for name, peak in optimizer(lr=lr).peaks.items()
        }
        step = jax.jit(stepper.train_step)
        programs.add(step.lower(factory.template, batch(), peaks).as_text())
        got, metrics = step(factory.fresh(), batch(), peaks)
        want, _ = step(factory.fresh(), batch())
        close(got.params, want.params, rtol=1e-5, atol=1e-7)
        assert metrics["train/lr"] == pytest.approx(lr)
    assert len(programs) == 1
