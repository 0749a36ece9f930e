"""Workers of a sweep do not outlive the process that started them.

Nobody would hear of their results any more, and they would keep their part of the machine from
those that go on with the sweep.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

_working = threading.Lock()  # held while a job runs
_watching: list[threading.Thread] = []


def working(stopping: Callable[[], bool]) -> AbstractContextManager[object]:
    """To hold during a job: once the process that started this worker has ended, so does this one.

    The job is asked to stop then and waited for. Does nothing in the sweep's own process.

    Args:
        stopping: was the job asked to stop already?
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return nullcontext()
    if not _watching:
        thread = threading.Thread(target=_watch, args=[parent.pid, stopping], daemon=True)
        thread.start()
        _watching.append(thread)
    return _working


def _watch(parent: int, stopping: Callable[[], bool]) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    if not stopping():  # a second signal would quit at once
        os.kill(os.getpid(), signal.SIGTERM)
    with _working:
        os._exit(0)
