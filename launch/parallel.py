"""What launchers mean for the machine: how many jobs at once, and what each of them has of it."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from llm.core.hardware import HardwareSpec

_ON_CPU = 2  # jobs at once where nothing says how many


def launcher_name(launcher: DictConfig) -> str:
    """Its class, for instance BasicLauncher."""
    return str(launcher._target_).rpartition(".")[2]


def jobs_at_once(launcher: DictConfig) -> int:
    """Jobs that share this machine; 1 where they have it in turn, or have others."""
    from llm.core.shares import cpus_here, gpus_here

    name = launcher_name(launcher)
    if name == "JoblibLauncher":
        return launcher.n_jobs if launcher.n_jobs > 0 else len(cpus_here())
    if name == "LocalLauncher":
        # Submitit starts all jobs together, each with the first GPUs; they wait for each other.
        gpus = len(gpus_here())
        if gpus:
            return max(gpus // (launcher.gpus_per_node or 1), 1)
        return max(len(cpus_here()) // launcher.cpus_per_task, 1) if launcher.cpus_per_task else 2
    return 1


def device_shares() -> int:
    """Jobs at once that have a GPU each; without GPUs, two."""
    from llm.core.shares import gpus_here

    return len(gpus_here()) or _ON_CPU


def gpus_of_a_job() -> int:
    """One, if this machine has any."""
    from llm.core.shares import gpus_here

    return min(len(gpus_here()), 1)


def target_for_jobs(hardware: HardwareSpec, launcher: DictConfig) -> Any:
    """The `Target` that a job of this launcher will have; None if only the job itself can tell.

    A process that starts other ones must not take hold of a GPU: it would keep memory from them.
    """
    from llm.plan.target import Target, target_by_name, target_here

    name = launcher_name(launcher)
    if name == "BasicLauncher":
        from llm.core.machine import claim

        return target_here(claim(hardware), timing=False)
    if hardware.device_kind:
        return target_by_name(hardware)
    if name not in ("JoblibLauncher", "LocalLauncher"):
        return None
    found: Target | None = _asked_elsewhere(hardware)
    n = jobs_at_once(launcher)
    if found is None:
        return None
    from dataclasses import replace

    from llm.core.shares import cpus_here, gpus_here, share

    part = share(0, n, cpus_here(), gpus_here())
    return replace(found, memory=found.memory // (n if found.platform == "cpu" else part.per_gpu))


def _asked_elsewhere(hardware: HardwareSpec) -> Any:
    """The devices of this machine, as a process finds them that ends at once."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_target, hardware).result()


def _target(hardware: HardwareSpec) -> Any:
    from llm.core.machine import claim
    from llm.plan.target import target_here

    return target_here(claim(hardware), timing=False)
