"""What tests read from run folders."""

import json
from pathlib import Path

import jax
import numpy as np

from llm.hub.checkpoints import checkpoint_folder


def events(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "time" and not k.startswith("perf/")}
        for line in lines
    ]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path) -> list[np.ndarray]:
    """Every array of the newest checkpoint: weights, optimizer state, step."""
    import orbax.checkpoint as ocp

    state = (checkpoint_folder(folder) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(state).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = reader.restore(state, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    assert len(jax.tree.leaves(restored)) > 10
    return jax.tree.leaves(restored)


def assert_same_run(one: Path, other: Path) -> None:
    assert events(one) == events(other)
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
