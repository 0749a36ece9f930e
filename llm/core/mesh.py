"""Devices as a mesh with two axes, and where arrays lie on it.

One device is a mesh of 1 x 1. Rows of a batch are split over both axes, weights over `fsdp`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# Which mesh axis a logical axis of a parameter is split over. Those not named are not split.
AXIS_RULES = {"embed": "fsdp"}


AXES = ("data", "fsdp")


def make_mesh(devices: Sequence[jax.Device], data_parallel: int, fsdp: int) -> Mesh:
    """Arrange devices as [data_parallel, fsdp]."""
    return Mesh(np.asarray(devices).reshape(data_parallel, fsdp), AXES)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """First axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


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
