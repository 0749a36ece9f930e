"""Devices as a mesh with three axes, and where arrays lie on it.

One device is a mesh of 1 x 1 x 1. Rows of a batch are split over `data` and `fsdp`, weights over
`fsdp` (Zhao et al. 2023) and `tensor` (Shoeybi et al. 2019), optimizer and averages as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# Which mesh axis a logical axis of a parameter is split over. Those not named are not split.
AXIS_RULES = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


AXES = ("data", "fsdp", "tensor")


def make_mesh(
    devices: Sequence[jax.Device], data_parallel: int, fsdp: int, tensor: int = 1
) -> Mesh:
    """Arrange devices as [data_parallel, fsdp, tensor]."""
    return Mesh(np.asarray(devices).reshape(data_parallel, fsdp, tensor), AXES)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """First axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def texts_sharding(mesh: Mesh | AbstractMesh, rows: int) -> NamedSharding:
    """Of what is written: rows are split if they divide, else whole on every device."""
    divides = rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    return rows_sharding(mesh) if divides else replicated(mesh)


def heads_sharding(mesh: Mesh | AbstractMesh, heads: int) -> NamedSharding:
    """Of an array [rows, time, heads, width]: rows are split, and heads if they divide."""
    split = "tensor" if heads % mesh.shape["tensor"] == 0 else None
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, split))


def parameter_sharding(
    mesh: Mesh | AbstractMesh, axes: tuple[str, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """Where a parameter lies, from the names of its axes; an axis that does not divide is whole."""
    split = [
        rule if (rule := AXIS_RULES.get(axis)) and size % mesh.shape[rule] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*split))


def put_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Place this host's rows of a batch on its devices."""
    sharding = rows_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
