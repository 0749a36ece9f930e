"""Tensors in a file that torch.save wrote, read without torch and without executing anything.

Such a file is a zip archive: `data.pkl` describes the tensors, `data/0`, `data/1`, ... hold their
numbers, stored as they are.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm.core.spec import RefusedError
from llm.hub.raw_arrays import read_array
from llm.hub.tensor_pickle import Described, described_tensors

_LARGEST_PICKLE = 8 * 2**20
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file; its numbers follow each other."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    """Bytes from the beginning of the file."""
    checksum: int
    """CRC-32 of the storage it lies in, as the archive says."""

    def read(self) -> np.ndarray:
        """The tensor.

        Raises:
            RefusedError: the file got shorter or is gone.
        """
        try:
            return read_array(self.path, self.start, self.shape, self.dtype)
        except OSError as error:
            raise RefusedError(f"{self.path}: {error}") from error


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a saved state dict, by name; their numbers are not read yet.

    Raises:
        RefusedError: not such a file, damaged, or its pickle does more than describe tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            tensors = described_tensors(_pickle(archive, members))
            return {
                name: _located(path, stream, members.get(f"data/{tensor.storage.key}"), tensor)
                for name, tensor in tensors.items()
            }
    except zipfile.BadZipFile as error:
        raise RefusedError(
            f"{path}: not in torch.save's zip format ({error}); load files from before "
            "torch 1.6 with torch and save them again"
        ) from error
    except RefusedError as error:
        raise RefusedError(f"{path}: {error}") from error
    except (OSError, ValueError, RuntimeError, EOFError, struct.error) as error:
        raise RefusedError(f"{path}: cannot be read: {error}") from error


def _pickle(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> bytes:
    info, order = members.get("data.pkl"), members.get("byteorder")
    if info is None:
        raise RefusedError("the archive has no data.pkl: expected a file that torch.save wrote")
    if info.file_size > _LARGEST_PICKLE:
        raise RefusedError(
            f"data.pkl has {info.file_size} bytes: at most {_LARGEST_PICKLE} are read"
        )
    if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
        raise RefusedError("its numbers are not little-endian")
    return archive.read(info)


def _located(
    path: Path, stream: BinaryIO, info: zipfile.ZipInfo | None, tensor: Described
) -> StoredTensor:
    """Check a tensor against its storage, and the storage against the file."""
    storage = tensor.storage
    if (
        info is None
        or info.compress_type != zipfile.ZIP_STORED
        or info.flag_bits & 1  # encrypted
        or info.file_size != storage.length * storage.dtype.itemsize
        or tensor.offset + math.prod(tensor.shape) > storage.length
    ):
        raise RefusedError(
            f"a tensor of shape {tensor.shape} does not fit its storage data/{storage.key[:80]}"
        )
    size = stream.seek(0, 2)
    stream.seek(info.header_offset)
    fields = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1]
    if fields[0] != b"PK\x03\x04" or start + info.file_size > size:
        raise RefusedError(f"data/{storage.key[:80]} lies outside of the file")
    first = start + tensor.offset * storage.dtype.itemsize
    return StoredTensor(path, tensor.shape, storage.dtype, first, info.CRC)
