"""GPUs to compile for that are not here.

XLA's CUDA compiler needs a description of the card and no card. What a description holds is from
the vendor's specifications.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from llm.core.devices import device_called
from llm.core.spec import RefusedError

_CUDNN = 91200  # the version that kernels are chosen for


@dataclass(frozen=True)
class _Chip:
    """What cards of one architecture share."""

    capability: tuple[int, int]
    cores: int
    threads_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    l2_bytes: int
    ghz: float


_HOPPER = _Chip((9, 0), 132, 2048, 233472, 232448, 52428800, 1.98)
_CHIPS = {
    "A6000": _Chip((8, 6), 84, 1536, 102400, 101376, 6291456, 1.8),
    "A100": _Chip((8, 0), 108, 2048, 167936, 166912, 41943040, 1.41),
    "H100": _HOPPER,
    "H200": _HOPPER,  # GH200 too
}
_TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {chip.shared_memory_per_core}
  threads_per_core_limit: {chip.threads_per_core} core_count: {chip.cores} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {chip.l2_bytes} clock_rate_ghz: {chip.ghz}
  device_memory_size: {memory} shared_memory_per_block_optin: {chip.shared_memory_per_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""


def absent_gpus(name: str, count: int) -> Sequence[jax.Device]:
    """Devices of this name that can be compiled for, and nothing else.

    Raises:
        RefusedError: the compiler is not installed, or there is no description of such a device.
    """
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        raise RefusedError(
            "exact=true: needs XLA's compiler for GPUs; pip install -e '.[compile-cuda]' (480 MB, "
            "no GPU needed)"
        )
    device = device_called(name)
    chip = next((chip for known, chip in _CHIPS.items() if known in name), None)
    if device is None or chip is None:
        raise RefusedError(f"exact=true: {name} is not described; known are {', '.join(_CHIPS)}")
    text = _TEXT.format(
        chip=chip,
        bandwidth=int(device.gb_per_s * 1e9),
        memory=int(device.memory_gib * 2**30),
        major=chip.capability[0],
        minor=chip.capability[1],
        name=f"NVIDIA {name}",
    )
    shape = f"1x{count}x1"
    topology = topologies.get_topology_desc("", platform="cuda", target_config=text, topology=shape)
    return topology.devices


@contextlib.contextmanager
def answering_for(name: str) -> Iterator[None]:
    """What JAX asks the card while it lowers attention kernels is answered for the absent one."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    chip = next(chip for known, chip in _CHIPS.items() if known in name)
    capability = ".".join(map(str, chip.capability))

    def is_it(wanted: str, *_: Any) -> bool:
        return wanted == capability

    def at_least(wanted: str, *_: Any) -> bool:
        return tuple(map(int, wanted.split("."))) <= chip.capability

    with contextlib.ExitStack() as stack:
        answers = {
            "check_cudnn_version": lambda *_: _CUDNN,
            "check_compute_capability": at_least,
            "is_cuda_compute_capability_equal": is_it,
        }
        for question, answer in answers.items():
            stack.enter_context(mock.patch.object(cudnn, question, answer))
        if jax.__version_info__ >= (0, 11):
            card = jax.sharding.AbstractDevice(f"NVIDIA {name}", chip.cores, "cuda")
            auto = (jax.sharding.AxisType.Auto,)
            mesh = jax.sharding.AbstractMesh((1,), ("x",), auto, abstract_device=card)
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        yield
