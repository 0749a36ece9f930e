"""Documents tokenised once, kept on disk, read through a memory map.

One folder per (source content, format, tokenizer): `tokens.bin` holds the documents' tokens, one
document after the other; `offsets.bin` (D + 1), `bytes.bin` (D) and
`hashes.bin` (D) hold where each begins, its exact length in UTF-8 and a hash of its text;
`trained.bin`, where not every token is to be predicted, which ones are; `meta.json` the counts. A
start costs no more than opening the files.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llm.data.build_once import build_once
from llm.data.digests import digest
from llm.data.formats import Document, Format
from llm.data.source import Skipped, Source
from llm.data.tokenizer import Tokenizer

_FORMAT = 2
_BATCH_CHARACTERS = 2**21
_BATCH_DOCUMENTS = 2048


class TokenCache:
    """A tokenised source.

    Attributes:
        folder: where it lies; its name is the fingerprint of content and tokenizer.
        meta: counts (`documents`, `tokens`, `bytes`, `skipped`) and the source's name.
        tokens: every document, with what stands around its text, uint16 or uint32.
        trained: bool, which tokens are to be predicted; None: all.
        offsets: int64 [D + 1], where each document begins in `tokens`.
        bytes: int64 [D], length of each document's text in UTF-8.
        hashes: uint64 [D], hash of each document's text.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        count = self.meta["documents"]
        self.tokens = np.memmap(folder / "tokens.bin", self.meta["dtype"], "r")
        trained = folder / "trained.bin"
        self.trained = np.memmap(trained, bool, "r") if trained.exists() else None
        self.offsets = np.memmap(folder / "offsets.bin", "<i8", "r", shape=(count + 1,))
        self.bytes = np.memmap(folder / "bytes.bin", "<i8", "r", shape=(count,))
        self.hashes = np.memmap(folder / "hashes.bin", "<u8", "r", shape=(count,))

    def __reduce__(self) -> tuple[type[TokenCache], tuple[Path]]:
        # Loader processes open the files themselves; a memory map would be pickled by content.
        return TokenCache, (self.folder,)

    @property
    def fingerprint(self) -> str:
        """Names content and tokenizer."""
        return self.folder.name


def tokenise(source: Source, tokenizer: Tokenizer, cache_dir: Path) -> TokenCache:
    """The source's token cache, built if there is none yet.

    Raises:
        RefusedError: the source cannot be read, or holds no text.
    """
    parts = (source.fingerprint(), tokenizer.fingerprint, tokenizer.start_id)
    folder = cache_dir / "tokens" / digest(_FORMAT, *parts)
    build_once(folder, lambda work: _build(work, source, tokenizer), _is_whole)
    return TokenCache(folder)


def _is_whole(folder: Path) -> bool:
    """Whether every file has the size that its meta.json tells."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    except (OSError, ValueError):
        return False
    return all(sizes.get(name) == size for name, size in meta["sizes"].items())


def _build(work: Path, source: Source, tokenizer: Tokenizer) -> None:
    """Fill an empty folder with the tokenised source."""
    started = time.monotonic()
    logger.info("tokenising {}", source.name)
    skipped = Skipped()
    writer = _Writer(work, source.format, tokenizer)
    with writer, _progress(source) as advance:
        for batch in _batches(source.documents(skipped)):
            advance(writer.write(batch))
    if not writer.documents:
        raise skipped.nothing_left(source.name)
    if skipped.counts:
        # An empty file is nobody's mistake; anything else may be.
        level = "INFO" if set(skipped.counts) == {"empty"} else "WARNING"
        logger.log(level, "{}: left out {}", source.name, skipped.describe())
    if source.format.trains_all:
        writer.check_bytes(source.name)
    sizes = {path.name: path.stat().st_size for path in work.iterdir()}
    meta = {
        "source": source.name,
        "dtype": writer.dtype,
        "documents": writer.documents,
        "tokens": writer.tokens,
        "bytes": writer.bytes,
        "skipped": dict(skipped.counts),
        "sizes": sizes,
    }
    (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    logger.info(
        "tokenised {}: {:,} documents, {:,} tokens, {:.1f} MB in {:.1f} s",
        source.name,
        writer.documents,
        writer.tokens,
        writer.bytes / 1e6,
        time.monotonic() - started,
    )


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in groups worth a call to the tokenizer: some MB of text."""
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(group) >= _BATCH_DOCUMENTS:
            yield group
            group, characters = [], 0
    if group:
        yield group


class _Writer:
    """Appends tokenised documents to the files of a cache."""

    def __init__(self, work: Path, format: Format, tokenizer: Tokenizer) -> None:
        self.dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
        self.documents = 0
        self.tokens = 0
        self.bytes = 0
        self._token_bytes = 0
        self._format = format
        self._tokenizer = tokenizer
        masks = () if format.trains_all else ("trained",)
        self._files = {
            name: (work / f"{name}.bin").open("wb")
            for name in ("tokens", "offsets", "bytes", "hashes", *masks)
        }
        self._append("offsets", np.zeros(1, "<i8"))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, documents: list[Document]) -> int:
        """Tokenise and append some documents; returns their bytes."""
        offsets = []
        for ids, trained in self._format.encode(documents, self._tokenizer):
            array = ids.astype(self.dtype)
            self._token_bytes += int(self._tokenizer.token_bytes[array].sum())
            self._append("tokens", array)
            if trained is not None:
                self._append("trained", trained)
            self.tokens += len(array)
            offsets.append(self.tokens)
        encoded = [document.text.encode() for document in documents]
        sizes = [len(content) for content in encoded]
        self._append("offsets", np.array(offsets, "<i8"))
        self._append("bytes", np.array(sizes, "<i8"))
        self._append("hashes", hashes_of(encoded))
        self.documents += len(documents)
        self.bytes += sum(sizes)
        return sum(sizes)

    def check_bytes(self, name: str) -> None:
        """Bits per byte counts the bytes that tokens stand for: say so if the text has others."""
        if self._token_bytes != self.bytes:
            logger.warning(
                "{}: this tokenizer does not keep text exactly: its tokens stand for {:,} bytes, "
                "the text has {:,}; bits per byte are off by {:.2%}",
                name,
                self._token_bytes,
                self.bytes,
                abs(self._token_bytes / self.bytes - 1),
            )

    def _append(self, name: str, values: np.ndarray[Any, Any]) -> None:
        self._files[name].write(values.tobytes())


class _progress:  # noqa: N801  (used like a function)
    """A progress bar over a source's bytes, only on a terminal; gives `advance(bytes)`."""

    def __init__(self, source: Source) -> None:
        console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("tokenising"),
            BarColumn(),
            TextColumn("{task.fields[megabytes]:.0f} MB"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=source.size, megabytes=0.0)

    def __enter__(self) -> Any:
        self._bar.start()
        return self._advance

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _advance(self, size: int) -> None:
        done = self._bar.tasks[0].completed + size
        self._bar.update(self._task, completed=done, megabytes=done / 1e6)


def hashes_of(texts: Sequence[bytes]) -> np.ndarray:
    """uint64 [D], by which documents are told apart and some of them held out."""
    hashes = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(hashes), "<u8")


def hash_of(text: str) -> int:
    """The hash of one text."""
    return int(hashes_of([text.encode()])[0])
