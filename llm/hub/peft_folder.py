"""A run's adapters in the layout of Hugging Face's PEFT: complete, or not there at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from loguru import logger

from llm.core.spec import RefusedError, spec_from_json
from llm.hub.checkpoints import read_checkpoint_meta, read_checkpoint_weights
from llm.hub.export import check_out, finished_or_gone
from llm.hub.hf_config import hf_config
from llm.hub.model_card import adapter_card
from llm.hub.pretrained import Pretrained
from llm.hub.tokenizer_files import write_json, write_tokenizer
from llm.hub.weight_names import weight_table
from llm.hub.weight_table import to_stored
from llm.models.lora import adapter_shapes
from llm.models.parameter import named, nested
from llm.models.specs import GPTSpec, ModelSpec

WEIGHTS = "adapter_model.safetensors"
_THEIR_NAMES = {"lora_a": "lora_A", "lora_b": "lora_B"}


def export_adapter(
    pretrained: Pretrained, folder: Path, *, dtype: str = "float32", repo: str | None = None
) -> dict[str, Any]:
    """Write adapter_config.json, adapter_model.safetensors, the tokenizer and a model card.

    Args:
        pretrained: a run of ours that was trained with adapters.
        folder: must not exist, or be empty.
        dtype: type of the stored weights, `float32` or `bfloat16`.
        repo: `org/name` under which the adapters can be had, for the card.

    Returns:
        The configuration.

    Raises:
        RefusedError: there is something in the folder, the checkpoint has no adapters, or they are
            beside weights that nobody else can have.
    """
    from safetensors.numpy import save_file

    check_out(folder)
    source, checkpoint = pretrained.source, pretrained.lineage.get("checkpoint")
    if checkpoint is None:
        raise RefusedError(f"checkpoint={source}: adapter=true takes a run of ours with adapters")
    meta = read_checkpoint_meta(Path(checkpoint))
    spec: ModelSpec = spec_from_json(meta["model"])
    if not spec.lora.rank:
        raise RefusedError(
            f"checkpoint={source}: was trained without adapters (model.lora.rank=0); leave out "
            "adapter=true to export the model"
        )
    hf_config(pretrained.spec, dtype=dtype)  # refuses what has no form in transformers
    config = adapter_config(spec, _base(source, spec, meta["parent"]))
    params = _read(Path(checkpoint), spec)
    tensors = {
        tensor: to_stored(params[name], transposed=True).astype(jnp.dtype(dtype), copy=False)
        for name, tensor in tensor_names(spec).items()
    }
    with finished_or_gone(folder) as unfinished:
        write_json(unfinished / "adapter_config.json", config)
        write_tokenizer(pretrained, unfinished)
        card = adapter_card(pretrained, config, repo=repo)
        (unfinished / "README.md").write_text(card, "utf-8")
        save_file(tensors, unfinished / WEIGHTS, metadata={"format": "pt"})
        (unfinished / WEIGHTS).chmod(0o644)  # the library's files are readable by their owner only
    logger.info("{}: {} tensors in {}.", folder, len(tensors), dtype)
    return config


def adapter_config(spec: ModelSpec, base: dict[str, str]) -> dict[str, Any]:
    """The content of adapter_config.json.

    Args:
        spec: what the model is made of, adapters included.
        base: `base_model_name_or_path`, and its `revision` if that is known.
    """
    modules = _modules(spec)
    adapted = [modules[path] for path in spec.adapted]
    alpha = spec.lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        **base,
        "inference_mode": True,
        "r": spec.lora.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "use_rslora": spec.lora.rslora,
        "lora_dropout": spec.lora.dropout,
        "target_modules": _short(adapted, list(modules.values())),
        "fan_in_fan_out": isinstance(spec, GPTSpec),  # GPT-2 stores its matrices as [in, out]
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
    }


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """From our name of each adapter's parameter to the tensor's; PEFT stores [out, in]."""
    modules, names = _modules(spec), {}
    for name in adapter_shapes(spec):
        path, _, leaf = name.rpartition(".")
        names[name] = f"base_model.model.{modules[path]}.{_THEIR_NAMES[leaf]}.weight"
    return names


def _modules(spec: ModelSpec) -> dict[str, str]:
    """What transformers calls each of our matrices in the blocks."""
    return {
        weight.dotted.removesuffix(".kernel"): weight.name.removesuffix(".weight")
        for weight in weight_table(spec)
        if weight.path[-1] == "kernel"
    }


def _short(adapted: list[str], modules: list[str]) -> list[str]:
    """Names that mean these modules: the last word where that means no others (`q_proj`)."""

    def short(module: str) -> str:
        word = module.rpartition(".")[2]
        alike = {other for other in modules if other.rpartition(".")[2] == word}
        return word if alike <= set(adapted) else module

    return sorted({short(module) for module in adapted})


def _base(source: str, spec: ModelSpec, parent: dict[str, Any] | None) -> dict[str, str]:
    """What the adapters belong to, in PEFT's words."""
    if parent is None:
        raise RefusedError(
            f"checkpoint={source}: its adapters are beside random weights, which nobody else has; "
            "leave out adapter=true to export the whole model"
        )
    if parent["vocab"] != spec.vocab:
        raise RefusedError(
            f"checkpoint={source}: the model has {spec.vocab} tokens and its base "
            f"{parent['vocab']}, so that adapters alone are not enough; leave out adapter=true to "
            "export the whole model"
        )
    base = str(parent.get("source") or parent["checkpoint"])
    kind, _, name = base.partition(":")
    if kind == "hf":
        base = name.partition("@")[0]
    elif parent.get("format") != "huggingface":
        logger.warning(
            "adapter_config.json names {} as the base, which transformers cannot read: export it, "
            "and load the adapters beside the exported folder.", base,
        )  # fmt: skip
    revision = {"revision": str(parent["revision"])} if parent.get("revision") else {}
    return {"base_model_name_or_path": base, **revision}


def _read(checkpoint: Path, spec: ModelSpec) -> dict[str, Any]:
    """The adapters alone, in fp32 on the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here)
        for name, shape in adapter_shapes(spec).items()
    }
    return named(read_checkpoint_weights(checkpoint, nested(template), some=True))
