"""Was this process started as one of several? Read from the environment, without JAX."""

from __future__ import annotations

from collections.abc import Mapping

from llm.core.spec import RefusedError

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")


def launched_by(environment: Mapping[str, str]) -> str | None:
    """What started this process as one of several: explicit, slurm, ompi or k8s; None if alone.

    Raises:
        RefusedError: the explicit variables are given in part, or are no numbers.
    """
    given = [name for name in EXPLICIT if environment.get(name)]
    if given:
        if len(given) < len(EXPLICIT):
            missing = ", ".join(name for name in EXPLICIT if name not in given)
            raise RefusedError(f"{given[0]} is set and {missing} is not: a run on several hosts "
                               "needs all three")  # fmt: skip
        for name in EXPLICIT[1:]:
            if not environment[name].isdecimal():
                raise RefusedError(f"{name}={environment[name]}: expected a whole number")
        count, index = (int(environment[name]) for name in EXPLICIT[1:])
        if index >= count:
            raise RefusedError(
                f"JAX_PROCESS_ID={index} with JAX_NUM_PROCESSES={count}: they count from 0"
            )
        return "explicit"
    # A shell inside of an allocation is a step of one task, whatever the allocation has.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS"))
    if all(name in environment for name in _SLURM) and tasks != "1":
        return "slurm"
    if all(name in environment for name in _OPEN_MPI) and environment[_OPEN_MPI[1]] != "1":
        return "ompi"
    if all(name in environment for name in _KUBERNETES):
        return "k8s"
    return None
