"""Parameters with logical axis names.

The names say what each axis means (`embed`, `heads`, `mlp`, `vocab`, ...); the table in
`llm.core.mesh` says over which mesh axis, if any, such an axis is split.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict


def normal(key: jax.Array, shape: tuple[int, ...], std: float, axes: tuple[str, ...]) -> Any:
    """An fp32 parameter drawn from N(0, std^2); `axes` names each dimension of `shape`."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32), axes=axes)


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


def named(params: Any) -> dict[str, Any]:
    """The leaves of a nested dict by dotted name, such as `blocks.0.query.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in flatten_dict(params).items()}


def nested(leaves: dict[str, Any]) -> Any:
    """The nested dict with these leaves: the inverse of `named`."""

    def key(part: str) -> str | int:
        return int(part) if part.isdecimal() else part  # the blocks of a model are numbered

    return unflatten_dict({tuple(map(key, name.split("."))): x for name, x in leaves.items()})
