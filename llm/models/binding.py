"""From a spec and a nested dict of weights to a module that can be called.

Outside this package a model is just that pair: the spec is static and hashable, the weights are a
plain pytree that optimizers, checkpoints and jit know how to handle.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
from flax import nnx

from llm.core.precision import cast_matrices
from llm.models.specs import ModelSpec


@lru_cache(maxsize=64)
def structure(spec: ModelSpec, remat: str = "none") -> nnx.GraphDef[Any]:
    """The module without its weights; nothing is computed."""
    return nnx.split(nnx.eval_shape(lambda: spec.build(jax.random.key(0), remat=remat)))[0]


def bind(
    spec: ModelSpec, params: Any, *, compute_dtype: str = "float32", remat: str = "none"
) -> Any:
    """The model with these weights, matrices cast to the compute type. Cheap; for use inside jit.

    Args:
        spec: what the model is made of.
        params: nested dict of arrays, see `llm.models.parameter.parameters`.
        compute_dtype: type of activations and matrix products.
        remat: what the backward pass recomputes, see `ModelSpec.build`.
    """
    return nnx.merge(structure(spec, remat), cast_matrices(params, compute_dtype))
