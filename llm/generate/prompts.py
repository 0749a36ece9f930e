"""Prompts from a file, answers to a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from llm.core.spec import RefusedError


def read_prompts(path: Path) -> list[str]:
    """One prompt per line, or the field `prompt` of each line of a .jsonl file. Empty lines count.

    Only a line feed ends a line: what Python takes for an end besides occurs within texts.

    Raises:
        RefusedError: no such file, not UTF-8, a line that is not as expected, or no prompt at all.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"prompts_file={path}: cannot be read: {error}") from error
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if not text:
        raise RefusedError(f"prompts_file={path}: no prompt in it")
    if path.suffix != ".jsonl":
        return lines
    return [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _prompt(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise RefusedError(f'prompts_file={where}: expected {{"prompt": "text"}}, got {line[:40]}')
    return prompt


def write_answers(path: Path, prompts: list[str], answers: list[list[str]]) -> None:
    """One line per prompt: {"prompt": ..., "completions": [...]}. All of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for prompt, texts in zip(prompts, answers, strict=True):
                line = {"prompt": prompt, "completions": texts}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
