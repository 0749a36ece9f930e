"""Reading safetensors files without trusting them, and without keeping them in memory.

Layout: the header's length in 8 bytes, the header as JSON (type, shape and place of each tensor),
the data. The safetensors library checks the header; the data is then read by plain reads, since
the pages of a mapped file count as memory in use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from llm.core.spec import RefusedError
from llm.hub.raw_arrays import read_array

_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    file: Path
    offset: int  # bytes from the start of the file
    stored_type: str
    shape: tuple[int, ...]


class SafetensorsFiles:
    """The tensors of one file, or of several that make up a model (`llm.hub.pretrained.Tensors`).

    Args:
        files: each with tensors that the others do not have.

    Raises:
        RefusedError: a file is damaged, or two files have a tensor of one name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._places: dict[str, _Place] = {}
        self.files: dict[str, list[str]] = {}
        for file in files:
            places = _read_header(file)
            for name in places.keys() & self._places.keys():
                first = self._places[name].file.name
                raise RefusedError(f"{name}: both {first} and {file.name} have this tensor")
            self._places |= places
            self.files[file.name] = list(places)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        return {name: place.shape for name, place in self._places.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor in the type it is stored in.

        Raises:
            RefusedError: it is not floating point, or cannot be read.
        """
        place = self._places[name]
        if place.stored_type not in _TYPES:
            raise RefusedError(
                f"{name}: stored as {place.stored_type}; expected {', '.join(_TYPES)} (models "
                "quantised in this format cannot be read)"
            )
        with _refusing(place.file):
            return read_array(place.file, place.offset, place.shape, _TYPES[place.stored_type])


def _read_header(file: Path) -> dict[str, _Place]:
    from safetensors import safe_open

    with _refusing(file):
        if not file.is_file():
            raise OSError("no such file")
        with safe_open(file, "numpy"):  # checks lengths, types, offsets and that all bytes are used
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    places = {}
    for name, info in header.items():
        offset = 8 + length + info["data_offsets"][0]
        places[name] = _Place(file, offset, info["dtype"], tuple(info["shape"]))
    return places


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """What the system or the library finds wrong with a file, in our words."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise RefusedError(f"{file.name}: not a readable safetensors file ({error})") from error
