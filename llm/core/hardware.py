"""How a run uses the machine: device, precision, micro-batches, rematerialisation, mesh.

A hardware profile decides how an experiment runs, never what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm.core.spec import RefusedError, Spec, knob

DTYPES = ("float32", "bfloat16")
ATTENTION_KERNELS = ("auto", "xla", "cudnn", "flash")
REMAT_POLICIES = ("none", "block", "dots")


@dataclass(frozen=True, kw_only=True)
class HardwareSpec(Spec):
    """One profile. `auto` takes what is there."""

    name: str = knob("auto", "name of the profile, used in messages")
    device: str = knob("auto", "kind of device", choices=("auto", "cpu", "gpu"))
    device_kind: str = knob("", "part of the device's own name, e.g. H100; empty takes any")
    require: bool = knob(False, "refuse to run when the device is not there, instead of warning")
    compute_dtype: str = knob(
        "auto", "type of activations and matrix products; auto: bfloat16 on a GPU, else float32",
        choices=("auto", *DTYPES),
    )  # fmt: skip
    cache_dtype: str = knob(
        "auto", "type of keys and values kept while writing text; auto: compute_dtype on a GPU, "
        "else float32", choices=("auto", *DTYPES),
    )  # fmt: skip
    micro_batch: int | None = knob(
        None,
        "rows at once per step and device; null: the whole batch, or for trainer=grpo 256 tokens "
        "of it on a CPU, 8192 elsewhere",
        gt=0,
    )
    loss_chunk: int | None = knob(
        None,
        "tokens of each device whose logits exist at the same time; null: 512 on a CPU, 4096 on "
        "a GPU",
        gt=0,
    )
    remat: str = knob("none", "what the backward pass recomputes", choices=REMAT_POLICIES)
    attention: str = knob(
        "auto",
        "what computes attention while training; auto: flash on one GPU in bfloat16, cudnn on "
        "several, else xla",
        choices=ATTENTION_KERNELS,
    )
    data_parallel: int = knob(1, "devices over which rows are split", gt=0)
    fsdp: int = knob(1, "devices over which rows and weights are split", gt=0)
    tensor: int = knob(
        1, "devices over which heads, hidden size and vocabulary are split: they share their rows",
        gt=0,
    )  # fmt: skip
    xla_flags: list[str] = knob([], "XLA_FLAGS for this device")
    peak_tflops: float | None = knob(
        None, "dense peak of one device in compute_dtype, for MFU; null looks it up", gt=0
    )
    bandwidth: float | None = knob(
        None, "between one device and its memory, GB/s, for plans; null looks it up", gt=0
    )
    memory_gib: float | None = knob(None, "memory of one device; null asks it", gt=0)
    compilation_cache: str | None = knob(
        "auto",
        "folder of compiled programs; auto: JAX_COMPILATION_CACHE_DIR or else xla in "
        "LERNAEAN_CACHE, by default ~/.cache/lernaean; null: none",
    )

    def check(self) -> None:  # noqa: D102
        bad = [flag for flag in self.xla_flags if not flag.startswith("--xla_")]
        if bad:
            raise RefusedError(f"xla_flags={bad[0]}: expected flags that begin with --xla_")
        if self.attention in ("cudnn", "flash"):
            problem = None
            if self.device == "cpu":
                problem = "a kernel for GPUs, and device=cpu"
            elif self.compute_dtype == "float32":
                problem = "a kernel for bfloat16, and compute_dtype=float32"
            elif self.attention == "flash" and self.devices > 1:
                problem = f"a kernel for one device, and here are {self.devices}"
            if problem:
                raise RefusedError(f"attention={self.attention}: {problem}; try auto")

    def settled(self, platform: str) -> HardwareSpec:
        """With what `auto` and null leave open decided for devices of this kind (`cpu`, `gpu`)."""
        on_gpu = platform != "cpu"
        dtype, cache, attention = self.compute_dtype, self.cache_dtype, self.attention
        if dtype == "auto":
            dtype = "bfloat16" if on_gpu else "float32"
        if cache == "auto":
            # XLA on CPUs would convert all of a bf16 cache to write one token.
            cache = dtype if on_gpu else "float32"
        if attention == "auto":
            fast = "flash" if self.devices == 1 else "cudnn"
            attention = fast if on_gpu and dtype == "bfloat16" else "xla"
        chunk = self.loss_chunk or (4096 if on_gpu else 512)
        return self.replace(
            compute_dtype=dtype, cache_dtype=cache, attention=attention, loss_chunk=chunk
        )

    @property
    def devices(self) -> int:
        """Devices in the mesh."""
        return self.row_shards * self.tensor

    @property
    def row_shards(self) -> int:
        """Parts into which the rows of a batch are split."""
        return self.data_parallel * self.fsdp
