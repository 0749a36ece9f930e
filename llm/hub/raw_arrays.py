"""Arrays in memory that JAX can use as it is, filled straight from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_ALIGNMENT = 64  # bytes; a JAX array on the CPU then takes the memory over instead of copying it


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array without content whose memory JAX can use as it is."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def read_array(path: Path, start: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that lies in a file as in memory.

    By plain reads: the pages of a mapped file would count as memory in use.

    Args:
        path: the file.
        start: bytes from its beginning.
        shape, dtype: of the array.

    Raises:
        OSError: the file cannot be read, or ends before the array does.
    """
    array = aligned_empty(shape, dtype)
    raw = array.reshape(-1).view(np.uint8)
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        done = 0
        while done < raw.size:  # the system returns less than asked for above 2 GiB
            n = stream.readinto(raw[done:].data)
            if not n:
                raise OSError("the file ends in the middle of a tensor")
            done += n
    return array
