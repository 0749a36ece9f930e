"""The kinds of source by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm.data.file_sources import JsonLines, Parquet, StandardLibrary, TextFiles
from llm.data.formats import Format, PlainText
from llm.data.hf_source import HuggingFace
from llm.data.source import Source
from llm.data.specs import DocumentsSpec
from llm.data.task_source import Tasks

_KINDS: dict[str, Callable[[DocumentsSpec, Path, Format], Source]] = {
    "stdlib": StandardLibrary,
    "text": TextFiles,
    "jsonl": JsonLines,
    "parquet": Parquet,
    "hf": HuggingFace,
    "task": Tasks,
}


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
