"""Low-rank adapters: putting them beside a model's matrices, and adding them into those.

LoRA (Hu et al. 2021) learns y = x W + scale (x A) B with W frozen, A [in, r] and B [r, out]. B
starts at zero, so that a model begins as what it was. rsLoRA (Kalajdzievski 2023) is another scale.

The frozen base is kept in the compute type, not in fewer bits (QLoRA, Dettmers et al. 2023). Of
what was tried with qwix 0.1.8: its nf4 cannot be saved by Orbax (no uint4 there), and with plain
differentiation every layer's dequantised matrix is kept for the backward pass, so that int8 took
more memory than it saved until the product got a gradient of its own that dequantises again.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llm.models.linear import Linear
from llm.models.parameter import named, nested
from llm.models.specs import LoRASpec, ModelSpec

_NAMES = ("lora_a", "lora_b")
# Beyond the numbers of the places where models themselves drop something, see `dropout`.
_FIRST_SITE = 1 << 16


def add_adapters(model: Any, spec: ModelSpec, key: jax.Array) -> None:
    """Give the matrices that `spec.lora` chooses an adapter each; without a rank, do nothing.

    Each draws from a key of its own, so that its A does not depend on which others there are, and
    the rest of the model does not depend on there being any.
    """
    adapted = set(spec.adapted)
    paths = (f"blocks.{i}.{name}" for i in range(spec.n_layers) for name in spec.linears)
    for number, path in enumerate(paths):
        if path in adapted:
            _, i, name = path.split(".")
            linear: Linear = getattr(model.blocks[int(i)], name)
            site = _FIRST_SITE + number
            linear.adapt(jax.random.fold_in(key, site), spec.lora, site)


def is_adapter(name: str) -> bool:
    """Whether the parameter of this dotted name belongs to an adapter."""
    return name.endswith(_NAMES)


def adapter_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Shape of each adapter's parameters, by dotted name."""
    shapes = {}
    for path in spec.adapted:
        n_in, n_out = spec.linears[path.rpartition(".")[2]]
        shapes[f"{path}.lora_a"] = (n_in, spec.lora.rank)
        shapes[f"{path}.lora_b"] = (spec.lora.rank, n_out)
    return shapes


def without_adapters(params: Any) -> Any:
    """The nested dict of the base model's parameters, or of what stands for them."""
    return nested({name: p for name, p in named(params).items() if not is_adapter(name)})


def merge_lora(spec: ModelSpec, params: Any) -> tuple[ModelSpec, Any]:
    """The plain model that computes the same: W + scale A B in place of W.

    Args:
        spec: what the model is made of; one without adapters comes back as it is.
        params: its parameters, a nested dict of arrays; not changed.

    Returns:
        The spec without adapters and its parameters, each in the type that it had. The sum is made
        in fp32.
    """
    flat, merged = named(params), {}
    for name, p in flat.items():
        place, _, leaf = name.rpartition(".")
        if leaf == "kernel" and f"{place}.lora_a" in flat:
            a, b = (flat[f"{place}.{adapter}"] for adapter in _NAMES)
            merged[name] = _merge(p, a, b, jnp.float32(spec.lora.scale))
        elif not is_adapter(name):
            merged[name] = p
    return spec.replace(lora=LoRASpec()), nested(merged)


@jax.jit
def _merge(
    w_DF: Float[Array, "D F"],
    a_DR: Float[Array, "D R"],
    b_RF: Float[Array, "R F"],
    scale: Float[Array, ""],
) -> Float[Array, "D F"]:
    # At the highest precision, since a GPU's usual product of fp32 matrices keeps 10 bits.
    product_DF = jnp.matmul(a_DR.astype(jnp.float32), b_RF.astype(jnp.float32), precision="highest")
    return (w_DF.astype(jnp.float32) + scale * product_DF).astype(w_DF.dtype)
