"""The devices that a plan is for: by name, or those that are here."""

from __future__ import annotations

from dataclasses import dataclass

from jax.sharding import AbstractMesh

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
    if spec.device == "gpu":
        return target_by_name(spec)
    target = target_here(claim(spec))
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
    return Target(
        settled,
        "gpu",
        spec.device_kind or spec.name,
        tflops * 1e12 * _share_of_bf16(settled.compute_dtype),
        gb_per_s * 1e9,
        int(memory_gib * GIB * MEMORY_SHARE),
    )


def target_here(machine: Machine) -> Target | None:
    """The devices of this machine; None if they do not say what they can do."""
    flops, bandwidth, memory = machine.peak_flops(), machine.bandwidth(), machine.memory_gib()
    if memory is None:
        return None
    return Target(
        machine.spec,
        machine.device.platform,
        machine.device.device_kind,
        (flops or 0) / machine.mesh.size,
        bandwidth or 0,
        int(memory * GIB),
    )


def _share_of_bf16(dtype: str) -> float:
    """fp32 products run as TF32, at half the rate, on all of these."""
    return 1.0 if dtype == "bfloat16" else 0.5
