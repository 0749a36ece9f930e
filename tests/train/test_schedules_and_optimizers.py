"""Learning rates as pinned numbers; optimizers by name."""

import jax
import jax.numpy as jnp
import optax
import pytest

from llm.core.spec import RefusedError
from llm.train.optimizer_specs import OptaxSpec
from llm.train.schedules import ConstantSpec, LinearSpec, WarmupCosineSpec, WarmupStableDecaySpec
from llm.train.supervised_specs import PretrainSpec

CONSTANT = {"lr": optax.constant_schedule(0.1)}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        # Steps 0, 1, 3 (end of warm-up), 4, 12, 19 and 20 of 20 at a peak of 1.
        (WarmupCosineSpec(warmup_steps=4), [0.25, 0.5, 1.0, 1.0, 0.55, 0.10865, 0.1]),
        (LinearSpec(warmup_steps=4), [0.25, 0.5, 1.0, 1.0, 0.5, 0.0625, 0.0]),
        (ConstantSpec(warmup_steps=4), [0.25, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (WarmupStableDecaySpec(warmup_steps=4), [0.25, 0.5, 1.0, 1.0, 1.0, 0.25, 0.0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedules(spec, expected) -> None:
    schedule = spec.build(1.0, 20)
    got = [float(schedule(step)) for step in (0, 1, 3, 4, 12, 19, 20)]
    assert got == pytest.approx(expected, abs=1e-4)


def test_no_warmup_starts_at_the_peak() -> None:
    assert float(ConstantSpec(warmup_steps=0).build(0.3, 10)(0)) == pytest.approx(0.3)


def test_warmup_must_end_before_the_run() -> None:
    with pytest.raises(RefusedError, match=r"schedule.warmup_steps=20: must be less than steps=20"):
        PretrainSpec(steps=20, schedule=ConstantSpec(warmup_steps=20))


@pytest.mark.parametrize("name", ["lion", "adafactor", "sgd", "lamb", "adan", "schedule_free_sgd"])
def test_any_optax_optimizer(name: str) -> None:
    spec, params = OptaxSpec(lr=0.1, optimizer=name), {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}

    @jax.jit
    def updates(peak):
        transform = spec.build({"lr": LinearSpec(warmup_steps=4).build(peak, 20)})
        return transform.update(params, spec.build(CONSTANT).init(params), params)[0]

    small, large = updates(0.1), updates(0.2)  # one program, as in a sweep over rates
    assert all(jnp.isfinite(u).all() for u in large.values())
    assert all((jnp.abs(small[n]) < jnp.abs(large[n])).all() for n in params)


def test_options_reach_the_optimizer() -> None:
    plain = OptaxSpec(lr=1.0, optimizer="sgd").build(CONSTANT)
    heavy = OptaxSpec(lr=1.0, optimizer="sgd", options={"momentum": 0.9})
    params = {"w": jnp.ones((2, 2))}
    state = heavy.build(CONSTANT).init(params)
    assert len(str(state)) > len(str(plain.init(params)))


@pytest.mark.parametrize("name", ["adamm", "chain", "adam.__globals__", "apply_updates"])
def test_not_an_optimizer(name: str) -> None:
    with pytest.raises(RefusedError, match=f"{name}: not an optimizer"):
        OptaxSpec(lr=0.1, optimizer=name).build(CONSTANT)


def test_not_an_option() -> None:
    spec = OptaxSpec(lr=0.1, optimizer="lion", options={"b3": 1.0})
    with pytest.raises(RefusedError, match=r"options.b3: optax.lion has no such option. It has b1"):
        spec.build(CONSTANT)
