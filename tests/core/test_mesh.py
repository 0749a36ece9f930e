"""Where rows and weights lie on a mesh."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from llm.core.mesh import heads_sharding, make_mesh, parameter_sharding, put_rows, replicated


def test_one_device_is_a_small_mesh() -> None:
    assert dict(make_mesh(jax.devices()[:1], 1, 1).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(("data_parallel", "fsdp"), [(4, 1), (2, 2), (1, 4)])
def test_rows_are_split_over_all_devices(data_parallel: int, fsdp: int) -> None:
    mesh = make_mesh(jax.devices()[:4], data_parallel, fsdp)
    tokens = np.arange(32).reshape(8, 4)
    placed = put_rows({"tokens": tokens}, mesh)["tokens"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 4)}
    np.testing.assert_array_equal(placed, tokens)


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("embed", "heads"), (8, 6), PartitionSpec("fsdp", "tensor")),
        (("mlp", "embed"), (6, 8), PartitionSpec("tensor", "fsdp")),
        (("vocab", "embed"), (7, 8), PartitionSpec(None, "fsdp")),  # 7 does not divide: whole
        (("positions",), (8,), PartitionSpec(None)),  # no rule: whole
        (("embed",), (7,), PartitionSpec(None)),
    ],
)
def test_weights_are_split_by_the_names_of_their_axes(axes, shape, expected) -> None:
    mesh = make_mesh(jax.devices(), 1, 4, 2)
    sharding = parameter_sharding(mesh, axes, shape)
    assert sharding.spec == expected
    placed = jax.device_put(np.zeros(shape), sharding)
    parts = math.prod(mesh.shape[axis] for axis in expected if axis is not None)
    assert {shard.data.size for shard in placed.addressable_shards} == {placed.size // parts}


def test_heads_are_split_if_they_divide() -> None:
    mesh = make_mesh(jax.devices(), 2, 1, 4)
    assert heads_sharding(mesh, 8).spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert heads_sharding(mesh, 3).spec == PartitionSpec(("data", "fsdp"), None, None)


def test_replicated_is_whole_everywhere() -> None:
    mesh = make_mesh(jax.devices()[:4], 2, 2)
    placed = jax.device_put(np.zeros((3, 5)), replicated(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 5)}
