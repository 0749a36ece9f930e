"""JSON files that a strict reader parses and that are never seen half-written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def strict(value: Any) -> Any:
    """`value` as strict JSON data: a number that is not finite becomes None (null).

    JSON has no word for NaN or infinity. null keeps a column of numbers a column of numbers (pandas
    and polars read it as missing), which the text "nan" would not.
    """
    # First what is most frequent, since every event passes here.
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if type(value) is not float and isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    try:
        number = float(value)  # numpy's and JAX's scalars too
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one: readers see the old content or the new, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` as indented strict JSON, atomically."""
    text = json.dumps(strict(data), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or broken."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
