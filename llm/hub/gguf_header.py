"""The header of a GGUF file (versions 2 and 3), read without trusting it.

Layout: magic, version, number of tensors, number of metadata entries; the entries; name, shape,
type and offset of each tensor; then, aligned, their data. Every count and length in it is checked
against what is left of the file before anything is read or allocated.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm.core.spec import RefusedError

# Types that this package reads: number -> (name, values per block, bytes per block).
QUANTISATIONS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# Metadata types: number -> numpy's name.
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
# Far above what models have (a vocabulary of 256 thousand, a chat template of 50 kB).
_MAX_ENTRIES = 2**16
_MAX_ITEMS = 2**22
_MAX_STRING = 2**24
_MAX_HEADER = 2**29


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]
    """Slowest dimension first, as numpy has it (the file has it the other way round)."""
    type: int
    """A key of `QUANTISATIONS`."""
    start: int
    """Bytes from the beginning of the file."""
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]
    """Numbers, truth values, texts, and lists of these."""
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read and check the header.

    Raises:
        RefusedError: not a GGUF file that can be read; the message says what is wrong.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file).header()
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Reader:
    """Reads forward through a file and never past its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = file.seek(0, 2)
        self._place = file.seek(0)

    def header(self) -> Header:
        if self._size < 24 or self._take(4, "magic") != b"GGUF":
            raise self._refusal("not a GGUF file: it does not begin with the letters GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise self._refusal(
                f"GGUF version {version}: expected 2 or 3, little-endian; convert it with a "
                "current llama.cpp"
            )
        n_tensors = self._count(_MAX_ENTRIES, 24, "tensors")
        n_entries = self._count(_MAX_ENTRIES, 13, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(n_entries):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._refusal(f"metadata {key!r} is there twice")
            metadata[key] = self._value(key)
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(n_tensors):
            name = self._string("the name of a tensor")
            if name in infos:
                raise self._refusal(f"tensor {name!r} is there twice")
            infos[name] = self._tensor(name)
        alignment = metadata.get("general.alignment", 32)
        powers_of_two = [2**n for n in range(3, 21)]
        if isinstance(alignment, bool) or alignment not in powers_of_two:
            raise self._refusal(f"general.alignment={alignment!r}: expected a power of two from 8")
        data = -(-self._place // alignment) * alignment
        return Header(metadata, {n: self._placed(n, *i, data, alignment) for n, i in infos.items()})

    def _tensor(self, name: str) -> tuple[tuple[int, ...], int, int]:
        """Shape, type and offset from the beginning of the data."""
        n_dims = self._number("<I")
        if not 1 <= n_dims <= 4:
            raise self._refusal(f"tensor {name!r} has {n_dims} dimensions: expected 1 to 4")
        shape = tuple(self._number("<Q") for _ in range(n_dims))
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in QUANTISATIONS:
            known = ", ".join(known_name for known_name, _, _ in QUANTISATIONS.values())
            raise self._refusal(
                f"tensor {name!r} is stored as {_type_name(kind)}: expected one of {known}; "
                "take a file with another quantisation"
            )
        return shape[::-1], kind, offset

    def _placed(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, data: int, alignment: int
    ) -> TensorInfo:
        type_name, block_values, block_bytes = QUANTISATIONS[kind]
        if min(shape) < 1 or shape[-1] % block_values:
            raise self._refusal(
                f"tensor {name!r} has shape {shape}: expected rows of a multiple of "
                f"{block_values} values for {type_name}"
            )
        n_bytes = math.prod(shape) // block_values * block_bytes
        if offset % alignment or data + offset + n_bytes > self._size:
            raise self._refusal(
                f"tensor {name!r} would lie at bytes {data + offset} to {data + offset + n_bytes}: "
                f"expected a multiple of {alignment} inside the file's {self._size}; the file is "
                "damaged or incomplete"
            )
        return TensorInfo(shape, kind, data + offset, n_bytes)

    def _value(self, key: str) -> Any:
        kind = self._number("<I")
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY:
            return self._scalars(key, kind, 1)[0]
        kind = self._number("<I")
        if kind == _STRING:
            return [self._string(key) for _ in range(self._count(_MAX_ITEMS, 8, key))]
        if kind not in _SCALARS:
            raise self._refusal(
                f"metadata {key!r} is a list of type {kind}: expected 0 to 8 or 10 to 12"
            )
        return self._scalars(
            key, kind, self._count(_MAX_ITEMS, np.dtype(_SCALARS[kind]).itemsize, key)
        )

    def _scalars(self, key: str, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise self._refusal(f"metadata {key!r} has type {kind}: expected 0 to 12")
        dtype = np.dtype(_SCALARS[kind])
        values: list[Any] = np.frombuffer(self._take(count * dtype.itemsize, key), dtype).tolist()
        return values

    def _count(self, limit: int, item_bytes: int, what: str) -> int:
        """How many items follow; refused if they cannot be in the file."""
        count: int = self._number("<Q")
        if count > limit or count * item_bytes > self._size - self._place:
            raise self._refusal(f"{what}: {count} cannot be in a file of {self._size} bytes")
        return count

    def _string(self, what: str) -> str:
        length = self._count(_MAX_STRING, 1, f"length of {what}")
        try:
            return self._take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self._refusal(f"{what} is not UTF-8") from error

    def _number(self, layout: str) -> int:
        number: int = struct.unpack(layout, self._take(struct.calcsize(layout), "a number"))[0]
        return number

    def _take(self, n_bytes: int, what: str) -> bytes:
        self._place += n_bytes
        if self._place > min(self._size, _MAX_HEADER):
            raise self._refusal(f"the file ends within {what}; it is damaged or incomplete")
        taken = self._file.read(n_bytes)
        if len(taken) != n_bytes:
            raise self._refusal(f"the file got shorter while {what} was read")
        return taken

    def _refusal(self, problem: str) -> RefusedError:
        return RefusedError(f"{self._path}: {problem}")


def _type_name(kind: int) -> str:
    from gguf.constants import GGMLQuantizationType

    names = {int(item): item.name for item in GGMLQuantizationType}
    return names.get(kind, f"type {kind}")
