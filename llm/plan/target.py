"""The devices that a plan is for: by name, or those that are here."""

from __future__ import annotations

from dataclasses import dataclass

from jax.sharding import AbstractMesh
from loguru import logger

from llm.core.devices import DEVICES, GIB, MEMORY_SHARE, device_called
from llm.core.hardware import HardwareSpec
from llm.core.machine import Machine, claim
from llm.core.mesh import AXES
from llm.core.spec import RefusedError


@dataclass(frozen=True)
class Target:
    """What a plan has to know of the devices."""

    spec: HardwareSpec
    """With nothing left open."""
    platform: str
    """`cpu` or `gpu`."""
    name: str
    """Of one device."""
    flops: float
    """Peak of one device, FLOP/s."""
    bandwidth: float
    """Between one device and its memory, bytes/s."""
    memory: int
    """That a run can have on one device, bytes."""

    @property
    def mesh(self) -> AbstractMesh:
        """The mesh, whose devices need not be there."""
        return AbstractMesh((self.spec.data_parallel, self.spec.fsdp, self.spec.tensor), AXES)


def target_of(spec: HardwareSpec) -> Target:
    """That a profile names; without a name the devices of this machine.

    Raises:
        RefusedError: nothing is known of them.
    """
    if spec.device == "gpu" or (spec.device == "auto" and spec.device_kind):
        return target_by_name(spec)
    machine = claim(spec)
    if machine.note:
        logger.warning(machine.note)
    target = target_here(machine)
    if target is None:
        raise RefusedError(
            f"hardware={spec.name}: this machine does not say how much memory its devices have; "
            "give hardware.memory_gib"
        )
    return target


def target_by_name(spec: HardwareSpec) -> Target:
    """The GPU that a profile names. No device is touched.

    Raises:
        RefusedError: it is not known, and the profile does not say what it can do.
    """
    known = device_called(spec.device_kind)
    given = spec.peak_tflops, spec.bandwidth, spec.memory_gib
    data = known and (known.tflops, known.gb_per_s, known.memory_gib)
    chosen = [mine or theirs for mine, theirs in zip(given, data or (None,) * 3, strict=True)]
    if None in chosen:
        raise RefusedError(
            f"hardware.device_kind={spec.device_kind}: known are "
            f"{', '.join(d.name for d in DEVICES)}; for others give hardware.peak_tflops, "
            "hardware.bandwidth and hardware.memory_gib"
        )
    tflops, gb_per_s, memory_gib = (float(x) for x in chosen if x is not None)
    settled = spec.settled("gpu")
    if spec.peak_tflops is None and settled.compute_dtype != "bfloat16":
        tflops /= 2  # fp32 products run as TF32, at half the rate, on all of these
    return Target(
        settled,
        "gpu",
        spec.device_kind or spec.name,
        tflops * 1e12,
        gb_per_s * 1e9,
        int(memory_gib * GIB * MEMORY_SHARE),
    )


def target_here(machine: Machine, *, timing: bool = True) -> Target | None:
    """The devices of this machine; None if they do not say how much memory they have.

    Args:
        machine: as claimed.
        timing: find out how fast they are, too; a CPU is measured for it.
    """
    memory = machine.memory_gib()
    if memory is None:
        return None
    on_gpu = machine.device.platform != "cpu"
    if on_gpu and machine.spec.memory_gib is not None:
        memory *= MEMORY_SHARE
    flops = (machine.peak_flops() or 0) if timing else 0
    return Target(
        machine.spec,
        machine.device.platform,
        machine.device.device_kind,
        flops / machine.mesh.size,
        (machine.bandwidth() or 0) if timing else 0,
        int(memory * GIB),
    )
