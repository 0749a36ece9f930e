"""Every scored token with its log-probability, as a table: parquet or lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm.data.tokenizer import Tokenizer
from llm.eval.text_loss import Document

COLUMNS = ("checkpoint", "source", "document", "position", "id", "token", "log_prob", "counts")


class _Table(Protocol):
    """An open file."""

    def write(self, columns: dict[str, list[Any]]) -> None:
        """Append rows."""

    def close(self) -> None:
        """End the file."""


class TokenFile:
    """Rows of `COLUMNS`, one per token that was predicted.

    `document` is its number in the source, `position` the token's place in it (the start token
    stands at 0), `log_prob` is in nats, and `counts` says whether the losses include it.
    """

    def __init__(self, table: _Table) -> None:
        self._table = table

    def add(
        self, checkpoint: str, tokenizer: Tokenizer, document: Document, log_probs: np.ndarray
    ) -> None:
        """Append a document."""
        ids = document.ids[1:].tolist()
        n = len(ids)
        values = (
            [checkpoint] * n, [document.corpus] * n, [document.number] * n,
            list(range(1, n + 1)), ids,
            [tokenizer.decode([token], skip_specials=False) for token in ids],
            log_probs.tolist(), document.counts.tolist(),
        )  # fmt: skip
        self._table.write(dict(zip(COLUMNS, values, strict=True)))


@contextlib.contextmanager
def open_token_file(path: Path) -> Iterator[TokenFile]:
    """A new file, in the form that its suffix names; there only once it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    table = _Parquet(temporary) if path.suffix == ".parquet" else _Lines(temporary)
    try:
        yield TokenFile(table)
        table.close()
        temporary.replace(path)
    finally:
        table.close()
        temporary.unlink(missing_ok=True)


class _Lines:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, columns: dict[str, list[Any]]) -> None:
        for row in zip(*columns.values(), strict=True):
            line = dict(zip(columns, row, strict=True))
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text, number = pa.dictionary(pa.int32(), pa.string()), pa.int32()
        types = (text, text, pa.int64(), number, number, pa.string(), pa.float32(), pa.bool_())
        self._schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def write(self, columns: dict[str, list[Any]]) -> None:
        for name, values in columns.items():
            self._rows[name] += values
        if len(self._rows["id"]) >= 2**20:  # a row group
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows["id"]:
            self._file.write_table(pa.table(self._rows, schema=self._schema))
        self._rows = {name: [] for name in COLUMNS}

    def close(self) -> None:
        if self._file.is_open:
            self._flush()
        self._file.close()
