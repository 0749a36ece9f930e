"""What a run or an export descends from: tokenizer -> pretrain -> SFT -> GRPO -> export.

Read from the folders themselves: run.json names the parent checkpoint's run and the tokenizer's,
an export's certificate.json names the run it was made of.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loguru import logger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm.report.json_files import read_json
from llm.report.numbers import clock, number

# The first of these that a run has is what it is judged by.
_SCORES = ("eval/accuracy", "eval/exact_match", "eval/bits_per_byte", "eval/loss")


@dataclass(frozen=True)
class Stage:
    """One folder of a model's life."""

    kind: str
    """`tokenizer`, a trainer's name, `export`, or `missing` for a folder that is not there."""
    folder: Path
    tokenizer: str
    """Fingerprint; '' if it is not known."""
    parents: tuple[Path, ...]
    score: str
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "folder": str(self.folder), "parents": list(map(str, self.parents))}


def tokenizer_run(path: str | None) -> str | None:
    """The run in whose folder the tokenizer lies that `data.tokenizer.path` names, if in any."""
    if path is None:
        return None
    place = Path(path).expanduser()
    folder = place.parent if place.is_file() else place
    return str(folder) if read_json(folder / "run.json").get("tokenizer") else None


def lineage(folder: Path) -> list[Stage]:
    """The stages that led to a folder, the oldest first; the folder is the last.

    A parent that descends from its own child, as files that were copied or edited may have it, is
    left out with a warning.

    Args:
        folder: of a run, or of an export.
    """
    found: dict[Path, Stage] = {}
    _walk(folder, found, frozenset())
    return list(found.values())


def _walk(folder: Path, found: dict[Path, Stage], descendants: frozenset[Path]) -> None:
    key = folder.resolve()
    if key in found:
        return
    stage = _stage(folder)
    descendants |= {key}
    for parent in stage.parents:
        if parent.resolve() in descendants:
            logger.warning("{}: its parent {} descends from it: left out", folder, parent)
            others = tuple(one for one in stage.parents if one != parent)
            stage = replace(stage, parents=others)
        else:
            _walk(parent, found, descendants)
    found[key] = stage


def _stage(folder: Path) -> Stage:
    run, certificate = read_json(folder / "run.json"), read_json(folder / "certificate.json")
    if certificate:
        parent = certificate.get("lineage", {}).get("run")
        difference = certificate["logits"]["read_back"]["max_difference"]
        return Stage(
            "export", folder, certificate["tokenizer"], _paths(parent),
            f"logits differ by {difference:.1g}", None,
        )  # fmt: skip
    if not run:
        return Stage("missing", folder, "", (), "", None)
    tokenizer, result = run.get("tokenizer") or {}, read_json(folder / "result.json")
    trainer = run["specs"].get("trainer")
    if trainer is None:
        measured: list[dict[str, Any]] = list(result.get("quality", {}).values())
        score = measured[0]["bytes_per_token"] if measured else None
        seconds = result.get("training", {}).get("seconds")
        text = f"{number(score)} bytes/token"
        return Stage("tokenizer", folder, tokenizer.get("fingerprint", ""), (), text, seconds)
    parent = (run.get("parent") or {}).get("run")
    return Stage(
        trainer["name"], folder, tokenizer.get("fingerprint", ""),
        _paths(tokenizer.get("run"), parent), _score(result),
        sum(result["ledger"].values()) if "ledger" in result else None,
    )  # fmt: skip


def _paths(*names: str | None) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names if name)


def _score(result: dict[str, Any]) -> str:
    final = result.get("final", {})
    name = next((name for name in _SCORES if final.get(name) is not None), None)
    return "" if name is None else f"{name} {number(final[name])}"


def show_lineage(console: Console, stages: list[Stage]) -> None:
    """A line for each stage, the oldest first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "stage", "from", "tokenizer", "result", "time", "folder"):
        table.add_column(name, no_wrap=True)
    numbers = {stage.folder.resolve(): str(n) for n, stage in enumerate(stages, 1)}
    for n, stage in enumerate(stages, 1):
        parents = " + ".join(numbers[parent.resolve()] for parent in stage.parents)
        time = "" if stage.seconds is None else clock(stage.seconds)
        table.add_row(
            str(n), stage.kind, parents, stage.tokenizer[:8], stage.score, time,
            Text(str(stage.folder)),  # a plain string would be markup
        )  # fmt: skip
    width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    Console(file=console.file, width=max(width, console.width), highlight=False).print(table)
