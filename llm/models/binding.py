"""From a spec and a nested dict of weights to a module that can be called.

Outside this package a model is just that pair: the spec is static and hashable, the weights are a
plain pytree that optimizers, checkpoints and jit know how to handle.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from llm.core.hardware import REMAT_POLICIES
from llm.core.precision import cast_matrices
from llm.models.kernels import kernel
from llm.models.specs import ModelSpec


@lru_cache(maxsize=64)
def abstract(spec: ModelSpec) -> Any:
    """The module with shapes for weights; nothing is computed. Shared: not to be changed."""
    return nnx.eval_shape(lambda: spec.build(jax.random.key(0)))


@lru_cache(maxsize=64)
def structure(spec: ModelSpec) -> nnx.GraphDef[Any]:
    """The module without its weights."""
    return nnx.split(abstract(spec))[0]


def bind(
    spec: ModelSpec,
    params: Any,
    *,
    compute_dtype: str = "float32",
    remat: str = "none",
    attention: str = "xla",
    mesh: Mesh | AbstractMesh | None = None,
) -> Any:
    """The model with these weights, matrices cast to the compute type. Cheap; for use inside jit.

    Args:
        spec: what the model is made of.
        params: nested dict of arrays, see `llm.models.parameter.parameters`.
        compute_dtype: type of activations and matrix products.
        remat: what the backward pass recomputes: `none`, `block` (all but the block's input) or
            `dots` (all but the results of matrix products).
        attention: what computes the attention of whole rows, see `llm.models.kernels`.
        mesh: over which whole batches are split; None leaves that to XLA.

    Raises:
        ValueError: there is no such `remat` or `attention`.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat={remat}: expected one of {', '.join(REMAT_POLICIES)}")
    model = nnx.merge(structure(spec), cast_matrices(params, compute_dtype))
    model.remat, model.attention, model.mesh = remat, kernel(attention), mesh
    return model
