"""Parameters with logical axis names.

The names say what each axis means (`embed`, `heads`, `mlp`, `vocab`, ...); the table in
`llm.core.mesh` says over which mesh axis, if any, such an axis is split.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding


@dataclass(frozen=True)
class Draw:
    """A parameter that is still to be drawn."""

    key: jax.Array
    sample: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    shape: tuple[int, ...]


def normal(key: jax.Array, shape: tuple[int, ...], std: float, axes: tuple[str, ...]) -> Any:
    """An fp32 parameter drawn from N(0, std^2); `axes` names each dimension of `shape`."""
    return _random(Draw(key, _normal(std), shape), axes)


def uniform(key: jax.Array, shape: tuple[int, ...], most: float, axes: tuple[str, ...]) -> Any:
    """An fp32 parameter drawn evenly from -most to most."""
    return _random(Draw(key, _uniform(most), shape), axes)


@lru_cache
def _normal(std: float) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


@lru_cache
def _uniform(most: float) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
    return lambda key, shape: most * jax.random.uniform(key, shape, jnp.float32, -1, 1)


_planning = ContextVar("planning", default=False)


def _random(draw: Draw, axes: tuple[str, ...]) -> Any:
    value = draw if _planning.get() else draw.sample(draw.key, draw.shape)
    return nnx.Param(value, axes=axes)


def constant(value: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
    """An fp32 parameter that starts with the same value everywhere."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


def logical_axes(model: nnx.Module) -> Any:
    """Nested dict with the names of each parameter's axes, shaped like `parameters(model)`."""
    return nnx.to_pure_dict(
        jax.tree.map(
            lambda variable: variable.get_metadata()["axes"],
            nnx.state(model, nnx.Param),
            is_leaf=lambda x: isinstance(x, nnx.Variable),
        )
    )


def parameters(model: nnx.Module) -> Any:
    """The weights as a nested dict of arrays, the form optimizers and checkpoints see."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def drawn(
    build: Callable[[], nnx.Module],
    shardings: dict[str, Sharding],
) -> dict[str, jax.Array]:
    """Parameters of a freshly built model by dotted name, each drawn on its own.

    One program that draws them all takes XLA up to a minute to compile, and one that draws a matrix
    serves all of its shape; and what is not wanted is not drawn.

    Args:
        build: makes the model.
        shardings: where to create which parameters; others are left out.
    """
    token = _planning.set(True)
    try:
        planned = named(parameters(build()))
    finally:
        _planning.reset(token)
    values = {}
    for name, sharding in shardings.items():
        p = planned[name]
        if isinstance(p, Draw):
            values[name] = _program(p.sample, p.shape, sharding)(p.key)
        else:
            values[name] = jax.device_put(p, sharding)
    return values


@lru_cache
def _program(
    sample: Callable[..., jax.Array], shape: tuple[int, ...], sharding: Sharding
) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda key: sample(key, shape), out_shardings=sharding)


def named(params: Any) -> dict[str, Any]:
    """The leaves of a nested dict by dotted name, such as `blocks.0.query.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in flatten_dict(params).items()}


def nested(leaves: dict[str, Any]) -> Any:
    """The nested dict with these leaves: the inverse of `named`."""

    def key(part: str) -> str | int:
        return int(part) if part.isdecimal() else part  # the blocks of a model are numbered

    return unflatten_dict({tuple(map(key, name.split("."))): x for name, x in leaves.items()})
