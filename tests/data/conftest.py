"""Small corpora in temporary folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from data_corpora import write_jsonl
from loguru import logger

from llm.data.specs import PackedSpec, TokenizerSpec


@pytest.fixture
def spec_of(tmp_path: Path) -> Callable[..., Any]:
    """`spec_of(texts, PaddedSpec, seq_len=64)`: a spec that reads these texts."""

    def make(texts: Sequence[str], kind: Any = PackedSpec, **changes: Any) -> Any:
        settings = {
            "source": "jsonl",
            "path": str(write_jsonl(tmp_path / "corpus.jsonl", texts)),
            "tokenizer": TokenizerSpec(vocab_size=400),
            "seq_len": 64,
            "batch_size": 4,
            "cache_dir": str(tmp_path / "cache"),
        }
        return kind(**{**settings, **changes})

    return make


@pytest.fixture
def messages() -> Any:
    """What is logged during the test."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{level} {message}")
    yield lines
    logger.remove(sink)
