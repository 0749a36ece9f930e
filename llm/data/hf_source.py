"""Documents from a dataset of the Hugging Face `datasets` library."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError
from llm.data.digests import digest_files
from llm.data.file_sources import find_files
from llm.data.formats import Document, Format
from llm.data.source import Skipped, Source
from llm.data.specs import DocumentsSpec


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
