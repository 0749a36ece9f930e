"""Devices as a mesh with three axes, and where arrays lie on it.

One device is a mesh of 1 x 1 x 1. Rows of a batch are split over `data` and `fsdp`, weights over
`fsdp` (Zhao et al. 2023) and `tensor` (Shoeybi et al. 2019), optimizer and averages as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from llm.core.spec import RefusedError

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


def host_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch's rows this process's devices hold: number of the part, and of parts.

    Raises:
        RefusedError: they are not an equal, contiguous part.
    """
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    here = jax.process_index()
    mine = [n for n, row in enumerate(rows) if any(d.process_index == here for d in row)]
    size = len(mine)
    if len(rows) % size or mine[0] % size or mine != list(range(mine[0], mine[0] + size)):
        raise RefusedError(
            f"hardware.tensor={mesh.shape['tensor']}: does not divide the devices of a process, "
            "nor do these divide it"
        )
    return mine[0] // size, len(rows) // size


def put_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Place this host's rows of a batch (see `host_share`) on its devices."""
    sharding = rows_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put_whole(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Place what every host has the whole of; each takes what its devices hold of it."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
