"""Documents from files: plain text, JSON lines, Parquet, and Python's own library."""

from __future__ import annotations

import glob
import gzip
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from llm.core.spec import RefusedError
from llm.data.digests import digest_files
from llm.data.formats import Document, Format
from llm.data.source import Skipped, Source
from llm.data.specs import DocumentsSpec

_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


class TextFiles(Source):
    """Each file is a document: UTF-8, exactly as it is on disk (a byte order mark aside)."""

    def __init__(self, spec: DocumentsSpec, cache_dir: Path, format: Format) -> None:
        super().__init__(spec, cache_dir, format)
        self.files = self._find()

    def _find(self) -> list[Path]:
        return find_files(str(self.spec.path), suffixes=None)

    @property
    def size(self) -> int | None:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)

    def _identity(self) -> Sequence[object]:
        try:
            return [digest_files(self.files, self._cache_dir)]
        except OSError as error:
            raise RefusedError(f"path={self.spec.path}: {error}") from None

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        for path in self.files:
            content = path.read_bytes()
            if b"\0" in content:
                skipped.add("binary", str(path))
                continue
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                skipped.add("not UTF-8", str(path))
                continue
            yield self.format.document({"text": text}, str(path))


class StandardLibrary(TextFiles):
    """The .py files of the running Python's standard library: code and prose on every machine."""

    def _find(self) -> list[Path]:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = []
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [name for name in subfolders if name not in _NOT_LIBRARY]
            files += [Path(folder) / name for name in names if name.endswith(".py")]
        if not files:
            raise RefusedError(
                f"source=stdlib: no .py files under {root} (a zipped library?). "
                "Take source=text and a path"
            )
        return sorted(files, key=lambda path: path.relative_to(root).parts)


class JsonLines(TextFiles):
    """Each line is a JSON object; one of its fields is the document. `.gz` is understood."""

    def _find(self) -> list[Path]:
        return find_files(str(self.spec.path), suffixes=(".jsonl", ".jsonl.gz", ".ndjson"))

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        for path in self.files:
            with _open_binary(path) as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield self._parse(line, f"{path}:{number}", number == 1)

    def _parse(self, line: bytes, origin: str, first: bool) -> Document:
        start = line[:80]
        try:
            record = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
        except UnicodeDecodeError as error:
            raise RefusedError(f"{origin}: not UTF-8 at byte {error.start}: {start!r}") from None
        except json.JSONDecodeError as error:
            raise RefusedError(
                f"{origin}: not valid JSON ({error.msg}, column {error.colno}): {start!r}"
            ) from None
        except RecursionError:
            raise RefusedError(f"{origin}: JSON nested too deeply: {start!r}") from None
        if not isinstance(record, dict):
            raise RefusedError(f"{origin}: expected a JSON object, found {start!r}")
        return self.format.document(record, origin)


class Parquet(TextFiles):
    """Some columns of Parquet files; each row is a document."""

    def _find(self) -> list[Path]:
        return find_files(str(self.spec.path), suffixes=(".parquet",))

    @property
    def size(self) -> int | None:
        """Bytes of the columns before compression."""
        total = 0
        for path in self.files:
            file, columns = self._open(path)
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                leaves = (group.column(n) for n in range(group.num_columns))
                total += sum(
                    leaf.total_uncompressed_size
                    for leaf in leaves
                    if leaf.path_in_schema.split(".")[0] in columns
                )
        return total

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        for path in self.files:
            file, columns = self._open(path)
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    yield self.format.document(record, f"{path}:row {row}")
                    row += 1

    def _open(self, path: Path) -> tuple[Any, list[str]]:
        """A file, and the columns to read."""
        import pyarrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise RefusedError(f"{path}: not a readable Parquet file: {error}") from None
        return file, self.format.columns(file.schema_arrow.names, str(path))


def find_files(path: str, suffixes: tuple[str, ...] | None) -> list[Path]:
    """The files that a path, folder or glob names, in sorted order; hidden ones are left out.

    Args:
        path: a file (taken whatever its name), a folder (searched to the bottom) or a glob.
        suffixes: which files of a folder count; None for all.

    Raises:
        RefusedError: there are none.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        found = [file for file in root.rglob("*") if _is_visible(file.relative_to(root))]
        wanted = "files" if suffixes is None else f"{' or '.join(suffixes)} files"
        if suffixes is not None:
            found = [file for file in found if file.name.endswith(suffixes)]
    else:
        found = [Path(name) for name in glob.glob(str(root), recursive=True)]  # noqa: PTH207
        wanted = "files that match" if glob.has_magic(str(root)) else "such file or folder"
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise RefusedError(f"path={path}: no {wanted} (looked from {Path.cwd()})")
    return files


def _is_visible(relative: Path) -> bool:
    return not any(part.startswith(".") for part in relative.parts)


def _open_binary(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
