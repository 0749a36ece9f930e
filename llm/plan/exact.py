"""The compiler's own figures: the run's programs, compiled for devices that need not be here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax

from llm.core.machine import COMPILER_OPTIONS, gpu_expected
from llm.core.mesh import make_mesh
from llm.plan.estimate import Estimate, Stage
from llm.plan.memory import MemoryPlan
from llm.plan.topology import absent_gpus, answering_for
from llm.train.parts import Parts


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a stage."""

    stage: Stage
    total: int
    """Bytes on one device: the program's, and what of the run's state it does not touch."""
    temporary: int
    """Of the program alone, besides what it is given and what it returns."""
    seconds: float
    """To compile it."""

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "name": self.stage.name,
            "bytes": self.total,
            "temporary_bytes": self.temporary,
            "formula_bytes": self.stage.need.total,
            "compile_seconds": self.seconds,
        }


def compiled(found: Estimate) -> Iterator[Compiled]:
    """Compile each stage of a run that has a program of its own.

    Raises:
        RefusedError: there is no compiler for the target here, or no description of it.
    """
    target, experiment = found.target, found.experiment
    devices, asked = _devices(found)
    mesh = make_mesh(devices, target.spec.data_parallel, target.spec.fsdp, target.spec.tensor)
    parts = Parts(experiment, found.model, target.spec, target.platform, mesh)
    options = COMPILER_OPTIONS.get(target.platform, {})
    platform = "cuda" if target.platform == "gpu" else "cpu"
    for stage in found.stages:
        if stage.program is None:
            continue
        begin = time.perf_counter()
        with answering_for(asked) if asked else nullcontext():
            program = stage.program(parts, options).lower(lowering_platforms=(platform,)).compile()
        memory = program.memory_analysis()
        assert memory is not None
        whole = (
            memory.argument_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )
        yield Compiled(
            stage,
            whole + _untouched(stage, parts),
            memory.temp_size_in_bytes,
            time.perf_counter() - begin,
        )


def _untouched(stage: Stage, parts: Parts) -> int:
    """What the run holds and the stage's program is not given."""
    need = stage.need.parts
    if stage.name == "train step":
        return need.get("program", 0)
    memory = MemoryPlan(parts)
    others = sum(need.get(name, 0) for name in _OTHERS)
    others += memory.own_head() if stage.name == "prefill" else 0  # no logits of prompts are asked
    # Text is written with weights in the compute type: those that are kept in another are not read.
    return others + (0 if stage.name == "score" else memory.cast())


_OTHERS = ("optimizer", "average (EMA)", "reference", "program", "other KV caches")


def _devices(found: Estimate) -> tuple[Sequence[jax.Device], str]:
    """Devices to compile for, and the name of those that are absent."""
    target = found.target
    n = target.spec.devices
    here = gpu_expected()
    if not here:
        jax.config.update("jax_platforms", "cpu")  # the compiler alone would look for a GPU
    devices = jax.devices()
    same = target.platform == "cpu" or (here and target.name in devices[0].device_kind)
    if same and len(devices) >= n:
        return devices[:n], ""
    return absent_gpus(target.name, n), target.name
