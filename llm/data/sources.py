"""Documents from files and datasets: one class per kind of source.

Every source knows a fingerprint of its content without parsing it, about how many bytes it holds,
and yields its documents in a fixed order. A document is one record; the `Format` says which of its
fields are read and what its text is. A document must fit in memory; nothing else here grows with
the corpus.
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
from typing import IO, Any

import llm.data.tasks as tasks_package
from llm.core.spec import RefusedError
from llm.data.digests import digest, digest_files
from llm.data.formats import Document, Format, PlainText
from llm.data.specs import DocumentsSpec
from llm.data.tasks import reasoning_gym
from llm.data.tasks.registry import kinds, tasks

_EXAMPLES = 5
_TASKS = 20_000  # where `max_documents` names no number
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


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

    def __init__(self, spec: DocumentsSpec, cache_dir: Path, format: Format) -> None:
        self.spec = spec
        self.format = format
        self._cache_dir = cache_dir

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
        parts = (spec.source, spec.max_documents, *self._identity())
        return digest(*parts, *self.format.identity())

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


def open_source(spec: DocumentsSpec, cache_dir: Path, format: Format | None = None) -> Source:
    """The source a spec describes.

    Args:
        spec: what to read.
        cache_dir: a folder for what is worth keeping between runs.
        format: what a record's text is; None takes the field that the spec names.

    Raises:
        RefusedError: there is nothing at its path, or not the fields that the format needs.
    """
    return _KINDS[spec.source](spec, cache_dir, format or PlainText(spec.text_field))


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


class HuggingFace(Source):
    """A dataset of the Hugging Face `datasets` library: from the hub or a local folder."""

    def __init__(self, spec: DocumentsSpec, cache_dir: Path, format: Format) -> None:
        super().__init__(spec, cache_dir, format)
        self._dataset = self._load(str(spec.path))
        available = self._dataset.column_names
        if available is None:  # a stream tells its columns with its first row
            available = list(next(iter(self._dataset), {}))
        self._columns = format.columns(available, str(spec.path))

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
            first = itertools.islice(self._read(Skipped()), 16)
            content = [str(spec.path), [document.text for document in first]]
        return [spec.config, spec.split, content]

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        for row, record in enumerate(self._dataset.select_columns(self._columns)):
            yield self.format.document(record, f"{self.spec.path}:row {row}")


class Tasks(Source):
    """Questions made up by rule, by us or by reasoning-gym, with answers; nothing is downloaded."""

    def __init__(self, spec: DocumentsSpec, cache_dir: Path, format: Format) -> None:
        super().__init__(spec, cache_dir, format)
        self._names = kinds(spec.path)
        self._count = spec.max_documents or _TASKS
        tasks(self._names, self._count)  # refuses a name that there is not
        format.columns(["messages", "text"], self.name)

    @property
    def size(self) -> int | None:
        """Only making them would tell."""
        return None

    def _identity(self) -> Sequence[object]:
        files = sorted(Path(tasks_package.__path__[0]).glob("*.py"))  # another rule, other tasks
        rules = [digest_files(files, self._cache_dir)]
        if self._names[0].startswith(reasoning_gym.PREFIX):
            rules.append(reasoning_gym.version())
        return [self._names, self._count, *rules]

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        for number, task in enumerate(tasks(self._names, self._count)):
            messages = [
                {"role": "user", "content": task.question},
                {"role": "assistant", "content": task.answer},
            ]
            record = {"messages": messages, "text": f"{task.question} {task.answer}"}
            yield self.format.document(record, f"{self.name}:{number}")


_KINDS: dict[str, Callable[[DocumentsSpec, Path, Format], Source]] = {
    "stdlib": StandardLibrary,
    "text": TextFiles,
    "jsonl": JsonLines,
    "parquet": Parquet,
    "hf": HuggingFace,
    "task": Tasks,
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


def _is_unicode(text: str) -> bool:
    """False for halves of surrogate pairs, which JSON can express and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
