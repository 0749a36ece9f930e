"""A tokenizer from its spec: train it, set it beside others, leave the folder in order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from llm.core.host_memory import peak_memory
from llm.core.spec import RefusedError
from llm.data.bpe import train_bpe
from llm.data.passages import HeldOut, Passages
from llm.data.source import Source
from llm.data.sources import open_source
from llm.data.tokenizer import Tokenizer
from llm.data.tokenizer_quality import measure
from llm.hub.sources import find_checkpoint, names_last, open_tokenizer
from llm.hub.tokenizer_files import save_tokenizer
from llm.report.json_files import write_atomic, write_json
from llm.report.run_files import now, write_run
from llm.report.tokenizer_report import Measured, draw, excerpt, markdown
from llm.train.tokenizer_spec import TokenizerTrainingSpec


def train_tokenizer(
    spec: TokenizerTrainingSpec, folder: Path, *, overrides: Sequence[str] = ()
) -> list[Measured]:
    """Train, measure, and write everything into the run's folder.

    Args:
        spec: what to do.
        folder: the run's; must hold no run yet.
        overrides: the words of the command line, for run.json.

    Returns:
        What was measured: of the new tokenizer, then of those to compare it with.

    Raises:
        RefusedError: something cannot work; result.json says so too.
    """
    if (folder / "run.json").exists():
        raise RefusedError(f"{folder}: holds a run already; choose another folder (hydra.run.dir)")
    started = now()
    try:
        return _train(spec, folder, overrides, started)
    except Exception as error:
        if folder.exists():
            failure = {"type": type(error).__name__, "message": str(error)}
            times = {"started": started, "finished": now()}
            write_json(folder / "result.json", {"status": "failed", **times, "error": failure})
        raise


def _train(
    spec: TokenizerTrainingSpec, folder: Path, overrides: Sequence[str], started: str
) -> list[Measured]:
    compared = [
        str(find_checkpoint(source, "compare")) if names_last(source) else source
        for source in spec.compare
    ]
    others = {source: open_tokenizer(source, "compare") for source in compared}
    cache_dir = Path(spec.data.cache_dir).expanduser()
    sources = [open_source(member, cache_dir) for member in spec.data.sources]
    weights = [member.weight for member in spec.data.sources]
    held_out = HeldOut(sources, spec.data.eval_fraction)
    passages = Passages(sources, weights, spec.characters, held_out)
    logger.info("Training on {}.", " + ".join(source.name for source in sources))
    clock = time.perf_counter()
    tokenizer = train_bpe(passages, spec)
    seconds = time.perf_counter() - clock
    training = {
        "seconds": round(seconds, 2),
        "characters": sum(passages.taken),
        "peak_memory_gib": round(peak_memory() / 2**30, 3),
    }
    logger.info(
        "{:,} tokens from {:.1f} million characters in {:.1f} s.",
        tokenizer.vocab_size, sum(passages.taken) / 1e6, seconds,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    texts = _texts(sources, held_out)
    named = {f"{spec.name} (this run)": tokenizer, **_shortened(others)}
    measured = [Measured(n, measure(one, texts), excerpt(one, texts)) for n, one in named.items()]
    write_run(
        folder,
        title=spec.name,
        specs=spec.to_json(),
        overrides=overrides,
        data={"sources": _read(sources, weights, passages.taken), "held_out": _count(texts)},
        tokenizer={"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
    )
    result = {
        "status": "finished",
        "started": started,
        "finished": now(),
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "training": training,
        "held_out": _count(texts),
        "quality": {one.name: one.quality.to_json() for one in measured},
    }
    write_atomic(folder / "report.md", markdown(spec.name, measured, training).encode())
    draw(measured, folder / "tokenizer.png", spec.name)
    write_json(folder / "result.json", result)
    return measured


def _shortened(others: Mapping[str, Tokenizer]) -> dict[str, Tokenizer]:
    """By the last part of a path, such as a run's folder, unless two have it in common."""
    paths = {source: Path(source) for source in others if ":" not in source}
    names = {source: _name(path) for source, path in paths.items()}
    taken = list(names.values())
    return {
        names[source] if taken.count(names.get(source, "")) == 1 else source: one
        for source, one in others.items()
    }


def _name(path: Path) -> str:
    """Of the run's folder, where a path leads to a part of it."""
    if path.parent.name == "checkpoints":
        return path.parents[1].name
    return path.parent.name if path.stem == "tokenizer" else path.name


def _texts(sources: Sequence[Source], held_out: HeldOut) -> dict[str, list[str]]:
    """Held-out texts by the names of their sources.

    Raises:
        RefusedError: there is not a word in them.
    """
    texts: dict[str, list[str]] = {}
    for source, of_one in zip(sources, held_out.texts(), strict=True):
        texts.setdefault(source.name, []).extend(of_one)
    texts = {name: of_one for name, of_one in texts.items() if any(map(str.split, of_one))}
    if not texts:
        raise RefusedError(
            "data.eval_fraction: nothing that it holds out has a word in it; hold out more"
        )
    return texts


def _read(
    sources: Sequence[Source], weights: Sequence[float], taken: Sequence[int]
) -> list[dict[str, Any]]:
    return [
        {
            "name": source.name,
            "fingerprint": source.fingerprint(),
            "weight": weight,
            "characters": characters,
        }
        for source, weight, characters in zip(sources, weights, taken, strict=True)
    ]


def _count(texts: dict[str, list[str]]) -> dict[str, Any]:
    return {
        name: {"documents": len(of_one), "bytes": sum(len(text.encode()) for text in of_one)}
        for name, of_one in texts.items()
    }
