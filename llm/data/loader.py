"""The loader: grain reads batches ahead, in threads or in worker processes.

Grain's state for this pipeline is the number of the next batch. With worker processes its own
state would also record how many there are; this loader keeps to the number, so a run may resume
with another count of workers and still see the same batches.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import queue
import signal
import sys
import threading
import weakref
from functools import partial
from typing import Any

import numpy as np

from llm.core.spec import RefusedError
from llm.data.batches import Batch, Batches

_THREADS = 2
_AHEAD = 4  # batches kept ready; a batch takes well under a millisecond to make
_SIGTERM_GRACE = 60.0


class Loader:
    """An endless iterator over batches that can tell where it is and go there.

    Args:
        batches: what to read.
        workers: processes that read ahead; 0 for threads in this process, which is enough unless
            the rows are very long.
    """

    def __init__(self, batches: Batches, workers: int = 0) -> None:
        self._batches = batches
        self._workers = workers
        self._next = 0
        self._readers: list[_Reader] = []  # one while it reads, else none
        # Also runs at the interpreter's exit, where grain by itself fails noisily.
        weakref.finalize(self, _stop, self._readers)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """The next batch: int32 [B, T] arrays, see `llm.data.rows.collate`."""
        while True:
            if not self._readers:
                self._readers.append(_Reader(self._batches, self._next, self._workers))
            index, batch = self._readers[0].read()
            if index == self._next:
                self._next += 1
                return batch
            self.close()  # Ctrl-C struck between a batch's arrival and here: read it again

    def cursor(self) -> dict[str, int]:
        """Where the loader is, as JSON data for a checkpoint: batches that were handed out."""
        return {"next_index": self._next}

    def restore(self, cursor: dict[str, int]) -> None:
        """Go on where `cursor()` was taken: the next batch is the one that came next then.

        Raises:
            RefusedError: this is not a cursor.
        """
        index = cursor.get("next_index") if isinstance(cursor, dict) else None
        if index is None or int(index) < 0:
            raise RefusedError(f"data cursor {cursor!r}: expected {{'next_index': batches}}")
        self.close()
        self._next = int(index)

    def close(self) -> None:
        """Stop reading ahead; a later `next` starts again from the same place."""
        _stop(self._readers)


class _Reader:
    """Grain's iterator, on a thread of its own.

    Python raises KeyboardInterrupt in the main thread only, wherever that is. Inside of grain it
    would leave queues half read, and what waits for them would wait for ever. A SimpleQueue is the
    one thing to wait for that it does not break.
    """

    def __init__(self, batches: Batches, first: int, workers: int) -> None:
        # The first spawn would start this process, and unblock the signals in passing.
        multiprocessing.resource_tracker.ensure_running()
        self._iterate = partial(_iterate, batches, first, workers)
        self._index = first
        self._iterator: Any = None
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._read: queue.SimpleQueue[tuple[int, Batch] | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def read(self) -> tuple[int, Batch]:
        """Number and arrays of the next batch."""
        self._wanted.put(True)
        result = self._read.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Finish the read under way, then end all threads and processes."""
        self._wanted.put(False)
        self._thread.join()

    def _run(self) -> None:
        # Grain starts its worker processes here, and they inherit what blocks signals: terminals
        # and clusters send them to every process, and only the main one should answer.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        while self._wanted.get():
            try:
                if self._iterator is None:
                    self._iterator = self._iterate()
                self._read.put((self._index, _copied(next(self._iterator))))
                self._index += 1
            except BaseException as error:  # whoever waits must hear of it
                self._read.put(error)
        if self._iterator is not None:
            self._iterator.close()


def _copied(batch: Batch) -> Batch:
    """Workers hand over shared memory that grain takes back; a copy is ours for good."""
    return {name: np.array(array) for name, array in batch.items()}


class _From:
    """Batches from number `first` on, in the form that grain reads."""

    def __init__(self, batches: Batches, first: int) -> None:
        self._batches = batches
        self._first = first

    def __len__(self) -> int:
        return sys.maxsize // 2 - self._first

    def __getitem__(self, index: int) -> Batch:
        return self._batches.batch(self._first + int(index))


def _iterate(batches: Batches, first: int, workers: int) -> Any:
    import grain
    from absl import flags

    read = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    dataset = grain.MapDataset.source(_From(batches, first)).to_iter_dataset(read)
    if workers:
        # Grain 0.2.18 reads an absl flag here, which fails unless somebody has parsed them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
    return iter(dataset)


def _stop(readers: list[_Reader]) -> None:
    """Close and let go of grain's iterator: its parts refer to each other."""
    if readers:
        readers.pop().close()
        gc.collect()


def _start_worker(index: int, count: int) -> None:
    """Make a worker process well-behaved: it outlives signals, but never its parent."""
    # After SIGTERM the run still wants batches, until it has stopped on its own terms.
    signal.signal(signal.SIGTERM, _leave_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Grain imports jax; nothing here may claim a device.
    os.environ["JAX_PLATFORMS"] = "cpu"
    threading.Thread(target=_die_with_parent, name="die-with-parent", daemon=True).start()


def _leave_later(signum: int, frame: object) -> None:
    timer = threading.Timer(_SIGTERM_GRACE, os._exit, [128 + signum])
    timer.daemon = True
    timer.start()


def _die_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
