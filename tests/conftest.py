"""Tests run on the CPU, as four devices, so that sharding is tested wherever they run."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("LERNAEAN_TEST_PLATFORM", "cpu")
os.environ["WANDB_MODE"] = "offline"

import jax

jax.config.update("jax_num_cpu_devices", 4)
