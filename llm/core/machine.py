"""Taking hold of the devices that a hardware profile asks for, or of what is there instead."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llm.core.allocator import use_one_arena
from llm.core.devices import GIB, MEMORY_SHARE, device_called
from llm.core.hardware import HardwareSpec
from llm.core.host_memory import host_memory, peak_memory
from llm.core.hosts import join, several
from llm.core.launched import launched_by
from llm.core.mesh import make_mesh
from llm.core.spec import RefusedError
from llm.core.user_cache import cache_folder

# For `jax.jit` of a train step. XLA's default order for CPUs seeks concurrency: it recomputes the
# attention weights of all layers at the start of the backward pass and holds them. And it hands
# reductions to a library that is slower at them (https://github.com/jax-ml/jax/issues/37465), by
# which a step of a 135M llama takes 1.3 times as long; so that is given the products only.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    }
}

_CACHE_OF_JAX = "JAX_COMPILATION_CACHE_DIR"
# Seconds that a program took to compile, from which on it is kept: JAX's variable and setting.
_MIN_COMPILE_TIME = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"

# What a profile says about its own device and no other.
_NOT_OF_THIS_DEVICE: dict[str, Any] = {
    "device_kind": "",
    "compute_dtype": "auto",
    "cache_dtype": "auto",
    "attention": "auto",
    "xla_flags": [],
    "peak_tflops": None,
    "bandwidth": None,
    "memory_gib": None,
    "data_parallel": 1,
    "fsdp": 1,
    "tensor": 1,
}


@dataclass(frozen=True)
class Machine:
    """A hardware profile as it runs here."""

    spec: HardwareSpec
    """The profile, or what became of it on this machine."""
    mesh: Mesh
    note: str | None
    """One line for the user if the profile's device is not there."""

    @property
    def device(self) -> jax.Device:
        """The first device."""
        return self.mesh.devices.flat[0]

    @property
    def compiler_options(self) -> dict[str, Any]:
        """Options of `jax.jit` for programs that train."""
        return COMPILER_OPTIONS.get(self.device.platform, {})

    def device_names(self) -> list[str]:
        """The devices in words."""
        return [f"{d.platform}:{d.id} {d.device_kind}" for d in self.mesh.devices.flat]

    def peak_flops(self) -> float | None:
        """Peak of all devices together, FLOP/s; None if it is not known.

        A CPU's peak is measured, once, by a short matrix product in the compute type.
        """
        if self.spec.peak_tflops is not None:
            each = self.spec.peak_tflops * 1e12
        elif self.device.platform == "cpu":
            return _measured_flops(self.spec.compute_dtype)  # fake devices share one processor
        else:
            known = device_called(self.device.device_kind)
            if known is None or self.spec.compute_dtype != "bfloat16":
                return None
            each = known.tflops * 1e12
        return each * self.mesh.size

    def bandwidth(self) -> float | None:
        """Bytes/s between one device and its memory; None if it is not known. A CPU's is measured.

        Fake devices of a CPU share it.
        """
        if self.spec.bandwidth is not None:
            return self.spec.bandwidth * 1e9
        if self.device.platform == "cpu":
            return _measured_bandwidth() / self.mesh.size
        known = device_called(self.device.device_kind)
        return None if known is None else known.gb_per_s * 1e9

    def memory_used_gib(self) -> float:
        """Peak so far: of the fullest device, or of this process on a CPU."""
        if self.device.platform == "cpu":
            return peak_memory() / GIB
        stats = [d.memory_stats() or {} for d in self.mesh.local_devices]
        return max(s.get("peak_bytes_in_use", 0) for s in stats) / GIB

    def memory_gib(self) -> float | None:
        """Memory of one device, or what a process may have on a CPU; None if it is not known."""
        if self.spec.memory_gib is not None:
            return self.spec.memory_gib
        if self.device.platform == "cpu":
            return host_memory() / GIB / len(self.mesh.local_devices)  # they share it
        here = self.mesh.local_devices[0]  # the first may be another process's
        limit = (here.memory_stats() or {}).get("bytes_limit")
        return limit / GIB if limit else None


def claim(spec: HardwareSpec) -> Machine:
    """Set up JAX for a profile and take its devices.

    Must come before anything else touches a device. If the devices are not there, everything that
    defines the experiment stays as it is and what belongs to the device (types, flags, peak,
    memory, number of devices) becomes that of the CPU.

    Raises:
        RefusedError: they are not there and `require` is set, or XLA was already set up otherwise.
    """
    notes: list[str] = []

    def make_do(spec: HardwareSpec, problem: str, instead: str, **changes: Any) -> HardwareSpec:
        if spec.require:
            raise RefusedError(f"hardware={spec.name} with hardware.require=true: {problem}")
        notes.append(f"hardware={spec.name}: {problem}; running on {instead}.")
        return spec.replace(**changes)

    on_gpu = spec.device == "gpu" or (spec.device == "auto" and gpu_expected())
    if on_gpu and not gpu_expected():
        problem = "no GPU (or no CUDA build of JAX) here"
        if launched_by(os.environ) is not None:  # others may have one, and all must run alike
            raise RefusedError(f"hardware={spec.name} on several processes: {problem}")
        spec = make_do(spec, problem, "the CPU", device="cpu", **_NOT_OF_THIS_DEVICE)
        on_gpu = False
    if spec.attention in ("cudnn", "flash") and not on_gpu:
        raise RefusedError(
            f"hardware.attention={spec.attention}: a kernel for GPUs, and here is none; try auto"
        )
    _set_xla_flags(spec.xla_flags)
    if not on_gpu:
        jax.config.update("jax_platforms", "cpu")
        use_one_arena()
        # Programs take their temporary arrays from the heap when they are dispatched: those of two
        # at once would make it twice as large, and for good.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    else:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(MEMORY_SHARE))
    join()
    # Random numbers by one kernel instead of hundreds of operations for XLA to compile each time.
    jax.config.update("jax_threefry_gpu_kernel_lowering", on_gpu)
    devices = jax.devices()
    kind = devices[0].device_kind
    if on_gpu and spec.device_kind not in kind:
        problem = f"this machine has a {kind}, not a {spec.device_kind}"
        own = {"peak_tflops": None, "bandwidth": None, "memory_gib": None}
        spec = make_do(spec, problem, "it as it is", **own)
    if several() and len(devices) != spec.devices:
        raise RefusedError(
            f"hardware.data_parallel x fsdp x tensor = {spec.devices}: this run is on "
            f"{jax.process_count()} processes with {len(devices)} devices in all; say for instance "
            f"hardware.data_parallel={len(devices)}"
        )
    if len(devices) < spec.devices:
        problem = f"{spec.devices} devices are asked for and {len(devices)} here"
        spec = make_do(spec, problem, "one", data_parallel=1, fsdp=1, tensor=1)
    spec = spec.settled("gpu" if on_gpu else "cpu")
    if spec.compilation_cache is not None:
        folder = _cache_of_programs(spec.compilation_cache)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        _caches.append(folder)
        if _MIN_COMPILE_TIME not in os.environ:
            jax.config.update(_MIN_COMPILE_TIME.lower(), 0.5)
    elif _caches:  # those of other runs in this process
        jax.config.update("jax_compilation_cache_dir", None)
    mesh = make_mesh(devices[: spec.devices], spec.data_parallel, spec.fsdp, spec.tensor)
    return Machine(spec, mesh, " ".join(notes) or None)


def gpu_expected() -> bool:
    """Is there an NVIDIA driver and a CUDA build of JAX? Answered without starting JAX."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    has_plugin = any(importlib.util.find_spec(name) for name in plugins)
    return has_plugin and Path("/proc/driver/nvidia").exists()


def _cache_of_programs(asked: str) -> Path:
    if asked == "auto":
        folder = Path(os.environ.get(_CACHE_OF_JAX) or cache_folder() / "xla").absolute()
    else:
        folder = Path(asked).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"hardware.compilation_cache={asked}: {folder} cannot be made ({error}); name another "
            "folder, or null for none"
        ) from None
    return folder


_caches: list[Path] = []  # folders of compiled programs that were set here
_flags_in_force: tuple[str, ...] | None = None


def _set_xla_flags(flags: list[str] | tuple[str, ...]) -> None:
    """Add to XLA_FLAGS. XLA reads them once per process, so later runs must want the same."""
    global _flags_in_force  # noqa: PLW0603
    if _flags_in_force is None:
        _flags_in_force = tuple(flags)
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    elif _flags_in_force != tuple(flags):
        raise RefusedError(
            f"hardware.xla_flags={list(flags)}: XLA already runs in this process with "
            f"{list(_flags_in_force)}; use one process per run"
        )


def _measured_bandwidth() -> float:
    """Bytes/s of adding a number to a large array: each byte is read, and written elsewhere."""
    x = jnp.zeros(2**24, jnp.float32)
    add = jax.jit(lambda x: x + 1).lower(x).compile()
    return 2 * x.nbytes / _fastest(lambda: add(x))


def _measured_flops(dtype: str) -> float:
    """FLOP/s of a square matrix product, the best of a few."""
    n = 1024
    x = jnp.ones((n, n), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    return 2 * n**3 / _fastest(lambda: product(x, x))


def _fastest(work: Callable[[], jax.Array]) -> float:
    """Seconds that it takes, at best of a few times."""
    work().block_until_ready()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        work().block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best
