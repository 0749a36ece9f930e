"""Our own checkpoints as pretrained models."""

from __future__ import annotations

import functools
from pathlib import Path

from llm.core.spec import spec_from_json
from llm.data.tokenizer import Tokenizer
from llm.hub.checkpoints import read_checkpoint_meta, read_checkpoint_weights
from llm.hub.pretrained import Pretrained


def open_run(folder: Path, source: str) -> Pretrained:
    """The model of one checkpoint.

    Args:
        folder: one checkpoint of a run.
        source: the words that led here.
    """
    meta = read_checkpoint_meta(folder)
    return Pretrained(
        source=source,
        spec=spec_from_json(meta["model"]),
        tokenizer=Tokenizer.from_json(meta["tokenizer"]),
        chat_template=meta["chat_template"],
        stop_ids=tuple(meta["stop_ids"]),
        weights=functools.partial(read_checkpoint_weights, folder),
        lineage={"checkpoint": str(folder), "step": meta["step"], "run": meta["run"]},
    )
