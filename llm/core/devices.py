"""Devices by name: what their data sheets say."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1024**3

# Of a GPU's memory, what a run takes. JAX itself would take three quarters; the rest is for the
# driver, and for what libraries allocate beside JAX.
MEMORY_SHARE = 0.92


@dataclass(frozen=True)
class Device:
    """One accelerator."""

    name: str
    """A part of what it calls itself."""
    tflops: float
    """Dense bf16 matrix products, 10^12 FLOP/s."""
    gb_per_s: float
    """Memory bandwidth, 10^9 bytes/s."""
    memory_gib: float


# The vendor's data sheets; memory as the driver reports it.
DEVICES = (
    Device("A6000", 154.8, 768, 47.5),
    Device("A100", 312.0, 1555, 39.4),
    Device("A100 80GB", 312.0, 2039, 79.2),
    Device("A100-SXM4-80GB", 312.0, 2039, 79.2),
    Device("A100 80GB PCIe", 312.0, 1935, 79.2),
    Device("H100", 989.0, 3350, 79.1),
    Device("H100 PCIe", 756.0, 2000, 79.1),
    Device("H100 NVL", 835.0, 3930, 93.6),
    Device("H200", 989.0, 4800, 140.4),
    Device("GH200", 989.0, 4000, 94.5),
)


def device_called(name: str) -> Device | None:
    """The device that calls itself so; None if it is not known. The longest fit counts."""
    fitting = [device for device in DEVICES if device.name in name]
    return max(fitting, key=lambda device: len(device.name), default=None)
