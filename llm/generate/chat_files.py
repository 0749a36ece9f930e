"""Conversations in files: JSON lines, one message each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError

ROLES = ("system", "user", "assistant", "tool")


def save_messages(path: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    """Write a new file; it is there as a whole or not at all.

    Raises:
        RefusedError: there is such a file already, or it cannot be written.
    """
    lines = [json.dumps(message, ensure_ascii=False) + "\n" for message in messages]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write("".join(lines).encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a renaming, it does not replace what is there
    except FileExistsError:
        raise RefusedError(f"{path}: there is such a file; take another name") from None
    except OSError as error:
        raise RefusedError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def load_messages(path: Path) -> list[dict[str, Any]]:
    """Read what `save_messages` wrote, or another program.

    Raises:
        RefusedError: there is no such file, or a line of it is no message.
    """
    try:
        lines = path.read_text("utf-8").split("\n")  # a message may hold other line ends
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RefusedError(f"{path}: expected JSON lines in UTF-8") from None
    messages: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            messages.append(_message(line, f"{path}:{number}", first=not messages))
    return messages


def _message(line: str, where: str, first: bool) -> dict[str, Any]:
    expected = 'expected {"role": "user", "content": "..."}'
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise RefusedError(f"{where}: no JSON; {expected}") from None
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise RefusedError(f"{where}: no message; {expected}")
    if message.get("role") not in ROLES:
        raise RefusedError(f"{where}: role={message.get('role')}: expected {', '.join(ROLES)}")
    if message["role"] == "system" and not first:
        raise RefusedError(f"{where}: a system prompt is the first message or there is none")
    try:
        message["content"].encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{where}: content: half of a character (a lone surrogate)") from None
    return message
