"""Corpora that the data tests share."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path


def random_texts(count: int, seed: int = 0, longest: int = 400) -> list[str]:
    """Different texts of very different lengths."""
    rng = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "naïve", "数据", "🙂", "x = 1\n", "    return"]
    texts = []
    for number in range(count):
        length = rng.randint(1, rng.choice([4, 40, longest]))
        texts.append(f"{seed}/{number} " + " ".join(rng.choices(words, k=length)))
    return texts


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def held_out(data, limit: int | None = None) -> list[dict]:
    """The held-out batches, whatever source they are of."""
    return [batch for _, batch in data.eval_batches(limit)]
