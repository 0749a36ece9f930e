"""Documents from files and datasets: one class per kind of source.

Every source knows a fingerprint of its content without parsing it, about how many bytes it holds,
and yields its documents in a fixed order. A document is one string and must fit in memory; nothing
else here grows with the corpus.
"""

from __future__ import annotations

import abc
import glob
import gzip
import itertools
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from llm.core.spec import RefusedError
from llm.data.digests import digest, digest_files
from llm.data.specs import DocumentsSpec

_EXAMPLES = 5
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


class Document(NamedTuple):
    """A text and where it came from (file, file:line or dataset row), for messages."""

    text: str
    origin: str


class Skipped:
    """What was left out and why: counts, and the first few names for the report."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, origin: str) -> None:
        """Count one document that is left out."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(origin)

    def describe(self) -> str:
        """One line such as `2 binary (a.bin, b.bin), 1 empty`; '' if nothing was."""
        parts = []
        for reason, count in sorted(self.counts.items()):
            names = ", ".join(self.examples[reason]) + (", ..." if count > _EXAMPLES else "")
            parts.append(f"{count} {reason}" + (f" ({names})" if reason != "empty" else ""))
        return ", ".join(parts)


class Source(abc.ABC):
    """A fixed sequence of documents."""

    def __init__(self, spec: DocumentsSpec) -> None:
        self.spec = spec

    @property
    @abc.abstractmethod
    def size(self) -> int | None:
        """About how many bytes of text there are; None if only reading would tell."""

    @abc.abstractmethod
    def _identity(self) -> Sequence[object]:
        """Values that change when the content does."""

    @abc.abstractmethod
    def _read(self, skipped: Skipped) -> Iterator[Document]:
        """All documents, empty ones included; what cannot be read goes to `skipped`."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return f"{self.spec.source}:{self.spec.path}" if self.spec.path else self.spec.source

    def fingerprint(self) -> str:
        """Names the sequence of documents: equal when their content and order are equal."""
        spec = self.spec
        return digest(spec.source, spec.text_field, spec.max_documents, *self._identity())

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """The documents that hold text, at most `max_documents`, in a fixed order.

        Args:
            skipped: is told what is left out: empty, binary or undecodable documents.

        Raises:
            RefusedError: a broken line or file, named, or a missing field.
        """
        return itertools.islice(self._usable(skipped), self.spec.max_documents)

    def _usable(self, skipped: Skipped) -> Iterator[Document]:
        for document in self._read(skipped):
            if not document.text:
                skipped.add("empty", document.origin)
            elif not _is_unicode(document.text):
                skipped.add("with unpaired surrogates", document.origin)
            else:
                yield document


def open_source(spec: DocumentsSpec, cache_dir: Path) -> Source:
    """The source a spec describes.

    Raises:
        RefusedError: there is nothing at its path.
    """
    return _KINDS[spec.source](spec, cache_dir)


class TextFiles(Source):
    """Each file is a document: UTF-8, exactly as it is on disk (a byte order mark aside)."""

    def __init__(self, spec: DocumentsSpec, cache_dir: Path) -> None:
        super().__init__(spec)
        self._cache_dir = cache_dir
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
            yield Document(text, str(path))


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
        return Document(_text_of(record, self.spec.text_field, origin), origin)


class Parquet(TextFiles):
    """One column of Parquet files; each row is a document."""

    def _find(self) -> list[Path]:
        return find_files(str(self.spec.path), suffixes=(".parquet",))

    @property
    def size(self) -> int | None:
        """Bytes of the column before compression."""
        total = 0
        for path in self.files:
            file = self._open(path)
            column = file.schema_arrow.get_field_index(self.spec.text_field)
            groups = range(file.metadata.num_row_groups)
            total += sum(
                file.metadata.row_group(g).column(column).total_uncompressed_size for g in groups
            )
        return total

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        for path in self.files:
            file = self._open(path)
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[self.spec.text_field]):
                for value in batch.column(0).to_pylist():
                    origin = f"{path}:row {row}"
                    record = {self.spec.text_field: value}
                    yield Document(_text_of(record, self.spec.text_field, origin), origin)
                    row += 1

    def _open(self, path: Path) -> Any:
        import pyarrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise RefusedError(f"{path}: not a readable Parquet file: {error}") from None
        if self.spec.text_field not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise RefusedError(f"text_field={self.spec.text_field}: {path} has {names}")
        return file


class HuggingFace(Source):
    """A dataset of the Hugging Face `datasets` library: from the hub or a local folder."""

    def __init__(self, spec: DocumentsSpec, cache_dir: Path) -> None:
        super().__init__(spec)
        self._cache_dir = cache_dir
        self._dataset = self._load(str(spec.path))
        columns = self._dataset.column_names
        if columns is not None and spec.text_field not in columns:
            raise RefusedError(
                f"text_field={spec.text_field}: {spec.path} has {', '.join(columns)}"
            )

    def _load(self, path: str) -> Any:
        import datasets

        spec = self.spec
        try:
            saved = Path(path, "dataset_dict.json").exists() or Path(path, "state.json").exists()
            if not saved:
                return datasets.load_dataset(
                    path, spec.config, split=spec.split, streaming=spec.streaming
                )
            # A folder that `save_to_disk` wrote holds Arrow tables, not data files.
            dataset = datasets.load_from_disk(path)
            return dataset[spec.split] if isinstance(dataset, datasets.DatasetDict) else dataset
        except (
            OSError,
            ValueError,
            KeyError,
            RuntimeError,
            datasets.exceptions.DatasetsError,
        ) as e:
            raise RefusedError(
                f"path={path}: datasets cannot load config={spec.config} split={spec.split}: {e}"
            ) from e

    @property
    def size(self) -> int | None:
        """Bytes of the Arrow tables (all columns); None when streaming."""
        return None if self.spec.streaming else getattr(self._dataset, "dataset_size", None)

    def _identity(self) -> Sequence[object]:
        """Local: the files' content. Hub: the revision in the Arrow files' names.

        When streaming from the hub nothing local names the revision; the first documents stand
        for the rest, so an upload that only appends is not noticed: clear the cache for that.
        """
        spec, path = self.spec, Path(str(self.spec.path))
        if path.exists():
            content: object = digest_files(find_files(str(path), suffixes=None), self._cache_dir)
        elif not spec.streaming:
            files = [Path(file["filename"]).parts[-4:] for file in self._dataset.cache_files]
            content = [files, self._dataset.num_rows]
        else:
            content = [str(spec.path), list(itertools.islice(self._read(Skipped()), 16))]
        return [spec.config, spec.split, content]

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        field = self.spec.text_field
        for row, record in enumerate(self._dataset.select_columns([field])):
            origin = f"{self.spec.path}:row {row}"
            yield Document(_text_of(record, field, origin), origin)


_KINDS: dict[str, Callable[[DocumentsSpec, Path], Source]] = {
    "stdlib": StandardLibrary,
    "text": TextFiles,
    "jsonl": JsonLines,
    "parquet": Parquet,
    "hf": HuggingFace,
}


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


def _text_of(record: dict[str, Any], field: str, origin: str) -> str:
    """A record's text; null counts as empty.

    Raises:
        RefusedError: no such field, or it holds no text.
    """
    if field not in record:
        raise RefusedError(f"{origin}: no field {field!r}; it has {', '.join(map(str, record))}")
    value = record[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RefusedError(f"{origin}: field {field!r} holds a {type(value).__name__}, not text")
    return value


def _is_unicode(text: str) -> bool:
    """False for halves of surrogate pairs, which JSON can express and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
