"""Checkpoints as W&B artifacts: references to where they lie, so that nothing is uploaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.report.json_files import read_json, strict


def checkpoint_artifact(
    wandb: Any, run_id: str, checkpoint: Path, metadata: Mapping[str, Any] | None = None
) -> Any:
    """A reference to a checkpoint of a run.

    Its content is the paths of the checkpoint's files and not what is in them, which may be
    gigabytes. So W&B takes the same checkpoint for the same version, whichever run mentions it.

    Args:
        wandb: the module.
        run_id: W&B id of the run that wrote the checkpoint.
        checkpoint: its folder.
        metadata: what to say of it.
    """
    artifact = wandb.Artifact(
        f"checkpoint-{run_id}", type="model", metadata=strict(metadata) if metadata else None
    )
    artifact.add_reference(checkpoint.absolute().as_uri(), checksum=False)
    return artifact


def parent_artifact(wandb: Any, parent: Mapping[str, Any]) -> Any | None:
    """What a run's first weights came from; None if that has no address.

    Args:
        wandb: the module.
        parent: the lineage that `llm.hub` tells of pretrained weights.
    """
    if parent.get("run") and Path(parent["checkpoint"]).is_dir():
        run_id = read_json(Path(parent["run"]) / "run.json").get("tracker_id")
        return checkpoint_artifact(wandb, run_id, Path(parent["checkpoint"])) if run_id else None
    kind, _, name = str(parent.get("source", "")).partition(":")
    if kind == "hf":
        name = name.partition("@")[0]
        artifact = wandb.Artifact(name.replace("/", "-"), type="model")
        revision = parent.get("revision", "main")
        artifact.add_reference(
            f"https://huggingface.co/{name}/tree/{revision}", name=name, checksum=False
        )
        return artifact
    return None
