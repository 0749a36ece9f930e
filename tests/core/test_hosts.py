"""Who takes part in a run, and which rows of a batch are whose."""

from types import SimpleNamespace

import numpy as np
import pytest

from llm.core.hosts import _all_local_devices, said_by_all, said_by_first
from llm.core.launched import launched_by
from llm.core.mesh import AXES, host_share
from llm.core.spec import RefusedError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "0",
}
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "0",
}


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, None),
        (SLURM, "slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        ({**SLURM, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, None),  # salloc's shell
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # a batch script outside of srun
        (OPEN_MPI, "ompi"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, "k8s"),
        (EXPLICIT, "explicit"),
        ({**SLURM, **EXPLICIT}, "explicit"),
    ],
)
def test_who_started_this_process(environment, launcher):
    assert launched_by(environment) == launcher


def test_half_an_address_is_refused():
    with pytest.raises(RefusedError, match="JAX_NUM_PROCESSES, JAX_PROCESS_ID is not"):
        launched_by({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"})
    with pytest.raises(RefusedError, match="JAX_PROCESS_ID=one: expected a whole number"):
        launched_by({**EXPLICIT, "JAX_PROCESS_ID": "one"})
    with pytest.raises(RefusedError, match="JAX_PROCESS_ID=2 with JAX_NUM_PROCESSES=2"):
        launched_by({**EXPLICIT, "JAX_PROCESS_ID": "2"})


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "CUDA_VISIBLE_DEVICES": "3"}, [0]),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "CUDA_VISIBLE_DEVICES": "5,7"}, [0, 1]),
        ({}, None),
    ],
)
def test_the_only_process_of_a_host_has_all_its_devices(environment, devices):
    assert _all_local_devices(environment) == devices


def test_alone_everybody_says_the_same():
    assert said_by_all("äß") == ["äß"]
    assert said_by_first("") == ""


@pytest.mark.parametrize(
    ("shape", "processes", "share"),  # ours is process 0
    [
        ((4, 1, 1), [0, 0, 1, 1], (0, 2)),
        ((2, 2, 1), [1, 1, 0, 0], (1, 2)),
        ((1, 2, 2), [0, 0, 1, 1], (0, 2)),
        ((1, 1, 4), [0, 0, 1, 1], (0, 1)),  # both hold the same rows
        ((2, 1, 2), [0, 1, 2, 3], (0, 2)),
        ((3, 1, 1), [1, 0, 2], (1, 3)),
    ],
)
def test_rows_of_a_batch_go_to_the_process_whose_devices_hold_them(shape, processes, share):
    devices = np.array([SimpleNamespace(process_index=p) for p in processes], object)
    mesh = SimpleNamespace(
        devices=devices.reshape(shape), shape=dict(zip(AXES, shape, strict=True))
    )
    assert host_share(mesh) == share


def test_rows_that_lie_scattered_are_refused():
    devices = np.array([SimpleNamespace(process_index=p) for p in [0, 1, 0, 1]], object)
    mesh = SimpleNamespace(
        devices=devices.reshape(4, 1, 1), shape=dict(zip(AXES, (4, 1, 1), strict=True))
    )
    with pytest.raises(RefusedError, match=r"hardware\.tensor=1"):
        host_share(mesh)
