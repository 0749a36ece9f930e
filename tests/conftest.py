"""Tests run on the CPU, as four devices, so that sharding is tested wherever they run."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("LERNAEAN_TEST_PLATFORM", "cpu")
os.environ["WANDB_MODE"] = "offline"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_threefry_partitionable", True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need one; elsewhere they are deselected by `-m "not gpu"` in addopts."""
    del items
