"""W&B's background process, which sends and writes what a run logs.

W&B has no public way to ask for it, or to be rid of it without waiting for the server.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

_TEARDOWN_SECONDS = 5.0
_NICENESS = 10  # a tenth of the usual weight: on busy cores it gets what training leaves


def give_way(wandb: Any) -> None:
    """Have the process leave busy cores to this one.

    Args:
        wandb: the module, with a run begun.
    """
    process = _process(wandb)
    if process is None:
        return
    niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    tasks = Path(f"/proc/{process.pid}/task")  # Linux: each thread has a priority of its own
    with suppress(OSError):  # it has ended
        ids = [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [process.pid]
        for task in ids:
            with suppress(OSError):  # this thread has
                os.setpriority(os.PRIO_PROCESS, task, niceness)


def end_service(wandb: Any) -> None:
    """End the process, if this one has started it, and forget it.

    Else W&B waits for it when Python exits, if need be for ever, and a next run in this process
    would be sent to it too. What it has written to disk can be synced later.

    Args:
        wandb: the module; None if it could not be imported.
    """

    def teardown() -> None:
        with suppress(BaseException):
            wandb.teardown()

    if process := _process(wandb):
        process.kill()
        process.wait()
        thread = threading.Thread(target=teardown, name="wandb-teardown", daemon=True)
        thread.start()
        thread.join(_TEARDOWN_SECONDS)


def has_lost_service(wandb: Any) -> bool:
    """Whether this process has started one that is no longer there."""
    process = _process(wandb)
    return bool(process) and process.poll() is not None


def _process(wandb: Any) -> Any:
    try:
        return wandb.setup()._connection._proc._process
    except Exception:
        return None
