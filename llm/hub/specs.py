"""What to publish, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm.core.hardware import DTYPES, HardwareSpec
from llm.core.spec import RefusedError, Spec, knob


@dataclass(frozen=True, kw_only=True)
class ExportSpec(Spec):
    """One call of launch/export.py."""

    checkpoint: str | Sequence[str] = knob(
        "last", "model: a run folder, last:TRAINER, hf:org/name, gguf:FILE, ... or a list of such"
    )
    out: str = knob(doc="folder to write; it must not exist, or be empty")
    push: str | None = knob(None, "org/name on the Hugging Face hub to upload to; null: none")
    private: bool = knob(True, "a repository that push creates is visible to its owners only")
    dtype: str = knob("float32", "type of the stored weights", choices=DTYPES)
    max_shard_gib: float = knob(4.0, "weights above this are split into several files, GiB", gt=0)
    gguf: str | None = knob(
        None, "write the model as model.gguf too, for llama.cpp, with matrices of this type",
        choices=("F32", "F16", "BF16", "Q8_0"),
    )  # fmt: skip
    adapter: bool = knob(False, "write a run's LoRA adapters alone, in the layout of PEFT")
    hardware: HardwareSpec = knob(HardwareSpec(), "hardware profile")

    def check(self) -> None:  # noqa: D102
        if not self.out.strip():
            raise RefusedError(f"out={self.out!r}: expected a folder")
        if self.push is not None and self.push.count("/") != 1:
            raise RefusedError(f"push={self.push}: expected org/name")
        if self.adapter and self.gguf is not None:
            raise RefusedError(
                f"gguf={self.gguf}: for whole models; leave it out with adapter=true"
            )
        if self.adapter and self.max_shard_gib != type(self).max_shard_gib:
            raise RefusedError(
                f"max_shard_gib={self.max_shard_gib}: adapters are one file; leave it out with "
                "adapter=true"
            )
