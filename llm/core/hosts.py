"""Several processes as one run: joining them, and what they must agree on.

Each process runs the same program with the same words. Who takes part is not a matter of the
experiment, so it is read from the environment: what Slurm, Open MPI and Kubernetes (indexed jobs)
say about a job, or `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm.core.launched import EXPLICIT, launched_by
from llm.core.spec import RefusedError

_HEARTBEAT = 60  # seconds after which the others learn that a process is gone
_SHUTDOWN = 30  # seconds that a process which has ended waits for the others


def join() -> None:
    """Join the other processes, if there are any and it has not been done. Before any device.

    Raises:
        RefusedError: the environment speaks of others, and they cannot be reached.
    """
    launcher = launched_by(os.environ)
    if launcher is None or jax.distributed.is_initialized():
        return
    if launcher == "k8s" and importlib.util.find_spec("kubernetes") is None:
        raise RefusedError(
            "this is an indexed job of Kubernetes: pip install jax[k8s] for one run over its pods, "
            "or unset JOB_COMPLETION_INDEX for a run per pod"
        )
    # Its handler would take SIGTERM away from ours; see `SharedFlag` for how a stop is agreed on.
    jax.config.update("jax_enable_preemption_service", False)
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)  # it remarks on that
    begin = partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
    )
    try:
        if launcher == "explicit":
            address, count, index = (os.environ[name] for name in EXPLICIT)
            begin(address, int(count), int(index), cluster_detection_method="deactivate")
        else:
            begin(
                local_device_ids=_all_local_devices(os.environ), cluster_detection_method=launcher
            )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RefusedError(f"joining the run's other processes ({launcher}): {reason}") from None


def _all_local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this process: those it sees, if they are its own; None: one, by its number.

    JAX gives the n-th process of a host its n-th device alone.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES", "")
    visible = len(listed.split(",")) if listed else None
    if visible == 1:  # the launcher has given each process one
        return [0]
    on_host = environment.get("SLURM_STEP_TASKS_PER_NODE")
    on_host = on_host or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    if on_host is None or on_host.partition("(")[0] != "1":
        return None
    if visible is None:
        cards = Path("/proc/driver/nvidia/gpus")
        visible = len(list(cards.iterdir())) if cards.exists() else None
    return None if visible is None else list(range(visible))


def several() -> bool:
    """Is this process one of several? Also before a device is touched."""
    return bool(jax.distributed.is_initialized()) and jax.process_count() > 1


def is_first() -> bool:
    """Is this the process that writes the run's files and speaks to people?"""
    return not several() or jax.process_index() == 0


def said_by_all(text: str) -> list[str]:
    """What each process said here, in their order. All must come here."""
    if not several():
        return [text]
    from jax.experimental import multihost_utils

    said = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([said.size], np.int32)).reshape(-1)
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: said.size] = said
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def said_by_first(text: str) -> str:
    """What the first process said here. All must come here."""
    return said_by_all(text if is_first() else "")[0]


class SharedFlag:
    """Has any process raised it? For things that all must do at the same place, such as stopping.

    All ask at the same places. The answer is that to the question before last, so that the host
    never waits for the step that its devices are at; and no more than two steps are done meanwhile.
    """

    _DELAY = 2

    def __init__(self, mesh: Mesh) -> None:
        everywhere = Mesh(mesh.devices.reshape(-1), ("devices",))
        self._mine = NamedSharding(everywhere, PartitionSpec("devices"))
        self._here = len(mesh.local_devices)
        self._any = jax.jit(
            lambda x: x.any(), out_shardings=NamedSharding(everywhere, PartitionSpec())
        )
        self._asked: deque[jax.Array] = deque()
        self._raised = False

    def __call__(self, raised: bool) -> bool:
        """Ask, and say whether it is raised here. Once raised it stays so."""
        if self._raised:
            return True
        own = np.full(self._here, raised)
        self._asked.append(self._any(jax.make_array_from_process_local_data(self._mine, own)))
        if len(self._asked) > self._DELAY:
            self._raised = bool(np.asarray(self._asked.popleft()))
        return self._raised
