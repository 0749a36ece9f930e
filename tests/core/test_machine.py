"""A hardware profile on a machine that has what it asks for, or has not."""

import os
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from llm.core import machine
from llm.core.hardware import HardwareSpec
from llm.core.machine import Machine, claim
from llm.core.spec import RefusedError

H100 = HardwareSpec(
    name="h100",
    device="gpu",
    device_kind="H100",
    compute_dtype="bfloat16",
    micro_batch=2,
    loss_chunk=64,
    remat="block",
    peak_tflops=835.0,
    memory_gib=93.6,
    xla_flags=["--xla_gpu_autotune_level=2"],
    compilation_cache=None,
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, and an XLA that has not started, as far as this module can tell."""
    jax.devices()  # XLA reads its flags now
    monkeypatch.setattr(machine, "gpu_expected", lambda: False)
    monkeypatch.setattr(machine, "_flags_in_force", None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_max_hlo_modules=9")


def test_a_missing_gpu_is_one_line_and_the_cpu_steps_in() -> None:
    here = claim(H100)
    assert here.note == "hardware=h100: no GPU (or no CUDA build of JAX) here; running on the CPU."
    assert here.device.platform == "cpu"
    assert (here.spec.compute_dtype, here.spec.peak_tflops, here.spec.memory_gib) == (
        "float32",
        None,
        None,
    )
    # How the work is cut up is not the device's own: that stays.
    assert (here.spec.micro_batch, here.spec.loss_chunk, here.spec.remat) == (2, 64, "block")


def test_a_kernel_for_gpus_is_refused_on_a_cpu() -> None:
    with pytest.raises(RefusedError, match="attention=cudnn: a kernel for GPUs"):
        claim(HardwareSpec(attention="cudnn", compilation_cache=None))
    with pytest.raises(RefusedError, match="attention=flash: a kernel for GPUs, and device=cpu"):
        HardwareSpec(device="cpu", attention="flash")
    with pytest.raises(RefusedError, match="for one device, and here are 4"):
        HardwareSpec(attention="flash", fsdp=4)
    with pytest.raises(RefusedError, match="for bfloat16, and compute_dtype=float32"):
        HardwareSpec(attention="flash", compute_dtype="float32")
    # But a profile for a GPU goes on without it where there is none, as it goes on without the GPU.
    assert claim(H100.replace(attention="cudnn")).spec.attention == "xla"


def test_flags_of_a_device_that_is_not_there_are_not_set() -> None:
    claim(H100)
    assert os.environ["XLA_FLAGS"] == "--xla_dump_max_hlo_modules=9"


def test_flags_are_added_to_those_of_the_user() -> None:
    claim(
        HardwareSpec(
            device="cpu", xla_flags=["--xla_dump_hlo_as_text=false"], compilation_cache=None
        )
    )
    assert os.environ["XLA_FLAGS"] == "--xla_dump_max_hlo_modules=9 --xla_dump_hlo_as_text=false"


def test_other_flags_in_the_same_process_are_refused() -> None:
    flags = HardwareSpec(
        device="cpu", xla_flags=["--xla_dump_hlo_as_text=false"], compilation_cache=None
    )
    claim(flags)
    claim(flags)
    with pytest.raises(RefusedError, match=r"hardware.xla_flags=\[\]: XLA already runs"):
        claim(flags.replace(xla_flags=[]))


def test_require_refuses_and_makes_nothing(tmp_path: Path) -> None:
    spec = H100.replace(require=True, compilation_cache=str(tmp_path / "xla"))
    with pytest.raises(RefusedError, match=r"hardware.require=true: no GPU"):
        claim(spec)
    assert not (tmp_path / "xla").exists()


def test_fewer_devices_than_asked_for() -> None:
    spec = HardwareSpec(name="many", device="cpu", fsdp=64, compilation_cache=None)
    here = claim(spec)
    assert here.note == (
        f"hardware=many: 64 devices are asked for and {len(jax.devices())} here; running on one."
    )
    assert here.mesh.size == here.spec.devices == 1
    with pytest.raises(RefusedError, match=r"hardware.require=true: 64 devices"):
        claim(spec.replace(require=True))


def test_as_many_devices_as_asked_for() -> None:
    here = claim(HardwareSpec(device="cpu", data_parallel=2, fsdp=2, compilation_cache=None))
    assert here.note is None
    assert dict(here.mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    one = claim(HardwareSpec(device="cpu", compilation_cache=None))
    assert here.memory_gib() == pytest.approx(one.memory_gib() / 4, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_asked_for_explicitly_is_kept(dtype: str) -> None:
    spec = HardwareSpec(device="cpu", compute_dtype=dtype, compilation_cache=None)
    assert claim(spec).spec.compute_dtype == dtype


def test_auto_on_the_cpu_computes_in_float32() -> None:
    here = claim(HardwareSpec(compilation_cache=None))
    assert (here.note, here.spec.compute_dtype) == (None, "float32")


@pytest.mark.parametrize(
    ("asked", "platform", "settled"),
    [("auto", "cpu", "float32"), ("auto", "gpu", "bfloat16"), ("bfloat16", "cpu", "bfloat16")],
)
def test_the_type_of_the_cache(asked: str, platform: str, settled: str) -> None:
    spec = HardwareSpec(compute_dtype="bfloat16", cache_dtype=asked)
    assert spec.settled(platform).cache_dtype == settled


@pytest.mark.parametrize("asked", ["named", "auto", "auto as JAX"])
def test_the_compilation_cache_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("LERNAEAN_CACHE", str(tmp_path / "ours"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    setting, place = "auto", tmp_path / "ours" / "xla"
    if asked == "named":
        setting = str(place := tmp_path / "named")
    elif asked == "auto as JAX":
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(place := tmp_path / "jax"))
    before = jax.config.jax_compilation_cache_dir
    try:
        claim(HardwareSpec(device="cpu", compilation_cache=setting))
        assert jax.config.jax_compilation_cache_dir == str(place)
        assert place.is_dir()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_compilation_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match="name another folder, or null"):
        claim(HardwareSpec(device="cpu", compilation_cache=str(tmp_path / "file" / "xla")))


class TestNumbers:
    def test_a_cpus_peak_is_measured(self) -> None:
        here = claim(HardwareSpec(device="cpu", compilation_cache=None))
        assert 1e9 < here.peak_flops() < 1e14

    def test_a_given_peak_counts_for_each_device(self) -> None:
        spec = HardwareSpec(device="cpu", peak_tflops=2.0, fsdp=4, compilation_cache=None)
        assert claim(spec).peak_flops() == 8e12

    def test_a_process_uses_memory(self) -> None:
        here = claim(HardwareSpec(device="cpu", compilation_cache=None))
        assert 0.05 < here.memory_used_gib() < 1000

    @pytest.mark.parametrize(
        ("kind", "dtype", "expected"),
        [
            ("NVIDIA RTX A6000", "bfloat16", 154.8),
            ("NVIDIA H100 80GB HBM3", "bfloat16", 989.0),
            ("NVIDIA H100 NVL", "bfloat16", 835.0),
            ("NVIDIA H100 PCIe", "bfloat16", 756.0),
            ("NVIDIA H100 NVL", "float32", None),
            ("NVIDIA GeForce GTX 980", "bfloat16", None),
        ],
    )
    def test_a_gpus_peak_is_looked_up(self, kind: str, dtype: str, expected) -> None:
        gpu = SimpleNamespace(platform="gpu", device_kind=kind)
        mesh = SimpleNamespace(devices=SimpleNamespace(flat=[gpu]), size=1)
        here = Machine(HardwareSpec(compute_dtype=dtype), mesh, None)
        assert here.peak_flops() == (expected and expected * 1e12)


class TestOnAGPU:
    """The GPU is made up; the profile's way to it is not."""

    @pytest.fixture(autouse=True)
    def a6000(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA RTX A6000")
        monkeypatch.setattr(machine, "gpu_expected", lambda: True)
        monkeypatch.setattr(jax, "devices", lambda: [gpu])
        monkeypatch.setattr(machine, "make_mesh", lambda *_: None)

    def test_auto_computes_in_bfloat16(self) -> None:
        here = claim(HardwareSpec(compilation_cache=None))
        assert (here.note, here.spec.compute_dtype) == (None, "bfloat16")

    @pytest.mark.parametrize(("devices", "kernel"), [(1, "flash"), (2, "cudnn")])
    def test_auto_takes_a_kernel_for_attention(
        self, devices: int, kernel: str, monkeypatch
    ) -> None:
        monkeypatch.setattr(jax, "devices", lambda f=jax.devices: f() * 2)
        spec = HardwareSpec(data_parallel=devices, compilation_cache=None)
        assert claim(spec).spec.attention == kernel
        assert claim(spec.replace(compute_dtype="float32")).spec.attention == "xla"

    def test_auto_does_not_overrule_the_user(self) -> None:
        here = claim(HardwareSpec(compute_dtype="float32", compilation_cache=None))
        assert here.spec.compute_dtype == "float32"

    def test_another_gpu_than_asked_for(self) -> None:
        here = claim(H100)
        assert here.note == (
            "hardware=h100: this machine has a NVIDIA RTX A6000, not a H100; "
            "running on it as it is."
        )
        assert (here.spec.peak_tflops, here.spec.memory_gib) == (None, None)
        assert here.spec.compute_dtype == "bfloat16"
        with pytest.raises(RefusedError, match="NVIDIA RTX A6000, not a H100"):
            claim(H100.replace(require=True))

    def test_two_things_missing_are_both_said(self) -> None:
        assert claim(H100.replace(fsdp=8)).note.count("hardware=h100:") == 2

    def test_the_gpu_that_was_asked_for(self) -> None:
        spec = H100.replace(device_kind="A6000", require=True)
        assert claim(spec).note is None
        assert os.environ["XLA_FLAGS"].endswith(" --xla_gpu_autotune_level=2")


def test_flags_must_be_xla_flags() -> None:
    with pytest.raises(RefusedError, match=r"xla_flags=--fast: expected flags that begin with"):
        HardwareSpec(xla_flags=["--fast"])
