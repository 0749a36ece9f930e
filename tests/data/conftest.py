"""Small corpora in temporary folders, and a tokenizer for chats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_records import SPECIALS
from data_corpora import random_texts, write_jsonl
from loguru import logger

from llm.data.bpe import train_bpe
from llm.data.specs import PackedSpec, TokenizerSpec
from llm.data.tokenizer import Tokenizer


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


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """With the special tokens of chat templates."""
    spec = TokenizerSpec(vocab_size=420, special_tokens=SPECIALS)
    return train_bpe(random_texts(200), spec)
