"""What training changes: weights, optimizer state, step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from llm.core.mesh import parameter_sharding, replicated
from llm.core.precision import cast_matrices
from llm.models.binding import abstract
from llm.models.lora import is_adapter, without_adapters
from llm.models.parameter import drawn, logical_axes, named, nested, parameters
from llm.models.specs import ModelSpec
from llm.train.trainable import joined, split


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step needs besides its batch; donated to it and replaced by its result."""

    step: Any
    """Optimizer steps done, an int32 scalar."""
    params: Any
    """Nested dict of weights."""
    opt_state: Any
    """Of the trained weights."""
    ema: Any
    """Averages of the trained weights, or None."""
    reference: Any = None
    """Trained weights as they were at some time, to stay near; or None."""

    @property
    def eval_params(self) -> Any:
        """The weights to evaluate, sample from and publish: the average if there is one."""
        return self.params if self.ema is None else joined(self.params, self.ema)


@dataclass(frozen=True)
class StateFactory:
    """Makes the first state, and describes a state without making it (to restore one)."""

    model: ModelSpec
    optimizer: optax.GradientTransformation
    seed: int
    use_ema: bool
    mesh: Mesh | AbstractMesh
    freeze: Sequence[str] = ()
    """Patterns, see `llm.train.trainable`."""
    compute_dtype: str = "float32"
    """Frozen matrices are kept in it. What is trained is fp32: the updates of bf16 weights would be
    rounded away."""
    use_reference: bool = False

    def fresh(self) -> TrainState:
        """Random weights, drawn from `seed` alone, each created where it will lie."""
        return self._begin(self._drawn(lambda name: True))

    def from_weights(self, params: Any) -> TrainState:
        """Given weights, everything else at its start; without adapters, these begin afresh.

        The arrays become the state's, and are gone with it after the first step.
        """
        if self.model.lora.rank:
            params = joined(self._drawn(is_adapter), params)
        return self._begin(params)

    def _drawn(self, wanted: Callable[[str], bool]) -> Any:
        places = named(self.shardings.params)
        places = {name: sharding for name, sharding in places.items() if wanted(name)}
        return nested(drawn(lambda: self.model.build(jax.random.key(self.seed)), places))

    def _begin(self, params: Any) -> TrainState:
        params = jax.device_put(self._kept(params), self.shardings.params)
        trained, _ = split(self.model, self.freeze, params)
        places = self.shardings
        rest = jax.jit(self._rest, out_shardings=(places.opt_state, places.ema, places.reference))
        step = jax.device_put(jnp.zeros((), jnp.int32), places.step)
        return TrainState(step, params, *rest(trained))

    @cached_property
    def template(self) -> TrainState:
        """Shape, type and placement of every array, as a state."""
        model = abstract(self.model)
        shapes = jax.eval_shape(self._shapes, parameters(model))
        axes = logical_axes(model)
        params = jax.tree.map(
            lambda names, p: parameter_sharding(self.mesh, names, p.shape),
            axes,
            shapes.params,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        whole = replicated(self.mesh)
        opt_state = _like_parameters(shapes.opt_state, shapes.params, params, whole)
        trained, _ = split(self.model, self.freeze, params)
        placement = TrainState(
            whole,
            params,
            opt_state,
            trained if self.use_ema else None,
            trained if self.use_reference else None,
        )
        template: TrainState = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placement
        )
        return template

    @property
    def base_template(self) -> Any:
        """What `from_weights` needs: the parameters of the template without adapters."""
        return without_adapters(self.template.params)

    @property
    def shardings(self) -> TrainState:
        """Placement of every array, as a state."""
        placement: TrainState = jax.tree.map(lambda x: x.sharding, self.template)
        return placement

    def _shapes(self, params: Any) -> TrainState:
        params = self._kept(params)
        trained, _ = split(self.model, self.freeze, params)
        return TrainState(jnp.zeros((), jnp.int32), params, *self._rest(trained))

    def _kept(self, params: Any) -> Any:
        """In the types in which they are kept."""
        params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        trained, frozen = split(self.model, self.freeze, params)
        if jnp.dtype(self.compute_dtype).itemsize < 4:
            # They are only ever read, in this type: less memory and the same numbers. The model
            # that is saved has them rounded, as those that are trained have learned beside them.
            params = joined(trained, cast_matrices(frozen, self.compute_dtype))
        return params

    def _rest(self, trained: Any) -> tuple[Any, Any, Any]:
        """Optimizer state, averages and reference."""
        copies = (
            jax.tree.map(jnp.copy, trained) if used else None
            for used in (self.use_ema, self.use_reference)
        )
        return self.optimizer.init(trained), *copies


def _like_parameters(opt_state: Any, params: Any, shardings: Any, whole: NamedSharding) -> Any:
    """Shardings of optimizer state: that of the parameter for leaves that mirror one.

    A leaf mirrors a parameter if its path ends like the parameter's and the shapes agree. (optax
    has `tree.map_params` for this, which fails on optimizers with several parts, such as Muon.)
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    table = {
        path: (p.shape, sharding)
        for (path, p), sharding in zip(flat, jax.tree.leaves(shardings), strict=True)
    }

    def find(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = table.get(path[start:], (None, whole))
            if shape == leaf.shape:
                return sharding
        return whole

    return jax.tree_util.tree_map_with_path(find, opt_state)
