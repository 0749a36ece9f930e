"""samples/step-000500.txt: what the model writes, as it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llm.report.json_files import write_atomic


class Sample(NamedTuple):
    """What a model wrote."""

    prompt: str
    completion: str
    reference: str | None = None
    """What the data says instead, where it does."""


def write_samples(folder: Path, step: int, tokens: int, samples: Sequence[Sample]) -> Path:
    """Write one file of samples.

    Args:
        folder: the run folder.
        step, tokens: when they were drawn.
        samples: what to write.

    Returns:
        The file.
    """
    parts = [f"step {step}, {tokens} tokens\n"]
    for i, (prompt, completion, reference) in enumerate(samples, start=1):
        parts.append(f"--- prompt {i} ---\n{prompt}\n--- completion {i} ---\n{completion}\n")
        if reference is not None:
            parts.append(f"--- reference {i} ---\n{reference}\n")
    path = folder / "samples" / f"step-{step:06d}.txt"
    path.parent.mkdir(exist_ok=True)
    # A model may emit half of a surrogate pair, which UTF-8 cannot hold.
    write_atomic(path, "\n".join(parts).encode("utf-8", "replace"))
    return path


def printable(text: str) -> str:
    """`text` without control characters, by which an untrained model moves the cursor."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def first_and_last(folder: Path) -> list[Path]:
    """The earliest and the latest file of samples in a run folder: none, one or two."""
    paths = sorted((folder / "samples").glob("step-*.txt"), key=_step)
    return [paths[0], paths[-1]] if len(paths) > 1 else paths


def _step(path: Path) -> int:
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1
