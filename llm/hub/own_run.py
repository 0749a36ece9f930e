"""Our own checkpoints as pretrained models."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from llm.core.spec import spec_from_json
from llm.data.tokenizer import Tokenizer
from llm.hub.checkpoints import read_checkpoint_meta, read_checkpoint_weights
from llm.hub.pretrained import Pretrained
from llm.models.lora import adapter_shapes, merge_lora
from llm.models.parameter import named, nested
from llm.models.specs import LoRASpec, ModelSpec


def open_run(folder: Path, source: str) -> Pretrained:
    """The model of one checkpoint; one with adapters as the plain model that computes the same.

    Args:
        folder: one checkpoint of a run.
        source: see `Pretrained.source`.
    """
    meta = read_checkpoint_meta(folder)
    spec: ModelSpec = spec_from_json(meta["model"])
    read = functools.partial(read_checkpoint_weights, folder)
    return Pretrained(
        source=source,
        spec=spec.replace(lora=LoRASpec()),
        tokenizer=Tokenizer.from_json(meta["tokenizer"]),
        chat_template=meta["chat_template"],
        stop_ids=tuple(meta["stop_ids"]),
        weights=functools.partial(_merged, folder, spec) if spec.lora.rank else read,
        lineage={
            "checkpoint": str(folder),
            "step": meta["step"],
            "run": meta["run"],
            **_inherited(meta["parent"] or {}),
        },
    )


def _inherited(parent: Mapping[str, Any]) -> dict[str, Any]:
    """What holds of a model's descendants too: its licence, and what the first of them was."""
    first = {"base": parent["source"]} if "source" in parent else {}
    kept = {name: parent[name] for name in ("licence", "licence_name", "base") if name in parent}
    return {**first, **kept}


def read_run_spec(folder: Path) -> ModelSpec:
    """The model of one checkpoint, as the plain one if it has adapters."""
    spec: ModelSpec = spec_from_json(read_checkpoint_meta(folder)["model"])
    return spec.replace(lora=LoRASpec())


def _merged(folder: Path, spec: ModelSpec, template: Any) -> Any:
    """The weights with their adapters added in; the adapted matrices are all in fp32 meanwhile."""
    plain = named(template)
    wanted = dict(plain)
    for name, shape in adapter_shapes(spec).items():
        kernel = f"{name.rpartition('.')[0]}.kernel"
        place = plain[kernel].sharding
        wanted[kernel] = jax.ShapeDtypeStruct(plain[kernel].shape, jnp.float32, sharding=place)
        wanted[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=_whole(place))
    _, params = merge_lora(spec, read_checkpoint_weights(folder, nested(wanted)))
    return jax.tree.map(
        lambda leaf, x: jax.device_put(x.astype(leaf.dtype), leaf.sharding), template, params
    )


def _whole(place: Sharding) -> Sharding:
    """The same devices, each with all of it."""
    return NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else place
