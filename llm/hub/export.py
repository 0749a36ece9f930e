"""A model as a Hugging Face folder: complete and checked, or not there at all."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from loguru import logger

from llm.core.hardware import DTYPES
from llm.core.spec import RefusedError
from llm.hub.certificate import certify
from llm.hub.gguf_export import write_gguf
from llm.hub.hf_config import hf_config
from llm.hub.hf_folder import INDEX, WEIGHTS
from llm.hub.model_card import model_card
from llm.hub.pretrained import Pretrained
from llm.hub.tokenizer_files import write_json, write_tokenizer
from llm.hub.weight_names import Weight, weight_table
from llm.hub.weight_table import get, to_stored
from llm.models.specs import ModelSpec

MAX_SHARD_BYTES = 4 * 2**30


def export(
    pretrained: Pretrained,
    params: Any,
    folder: Path,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    gguf: str | None = None,
    repo: str | None = None,
) -> dict[str, Any]:
    """Write the model, its tokenizer, a model card and the certificate that all of it is right.

    Args:
        pretrained: what belongs to the weights.
        params: the weights, a nested dict of arrays; not changed.
        folder: must not exist, or be empty.
        dtype: type of the stored weights, `float32` or `bfloat16`.
        max_shard_bytes: weights are split into files no larger than this, or than one tensor.
        gguf: write it as model.gguf too, with matrices of this type, see `llm.hub.gguf_export`.
        repo: `org/name` under which the model can be had, for the card.

    Returns:
        The certificate, see `llm.hub.certificate`.

    Raises:
        RefusedError: there is something in the folder, or the model has no form in transformers.
        RuntimeError: what was written is not what is in memory; nothing is left behind then.
    """
    if dtype not in DTYPES:
        raise RefusedError(f"dtype={dtype}: expected one of {', '.join(DTYPES)}")
    check_out(folder)
    eos, bos = pretrained.end_ids, pretrained.tokenizer.start_id
    config = hf_config(pretrained.spec, dtype=dtype, bos_id=bos, eos_ids=eos)
    with finished_or_gone(folder) as unfinished:
        write_json(unfinished / "config.json", config)
        generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        generation["pad_token_id"] = pretrained.tokenizer.separator_id
        generation |= pretrained.sampling
        write_json(unfinished / "generation_config.json", generation)
        write_tokenizer(pretrained, unfinished)
        tensors = write_weights(pretrained.spec, params, unfinished, dtype, max_shard_bytes)
        single = None
        if gguf is not None:
            single = unfinished / "model.gguf"
            write_gguf(pretrained, params, single, kind=gguf)
        certificate = certify(
            pretrained, params, unfinished, dtype=dtype, tensors=tensors, gguf=single
        )
        write_json(unfinished / "certificate.json", certificate)
        card = model_card(pretrained, certificate, repo=repo)
        (unfinished / "README.md").write_text(card, "utf-8")
    logger.info("{}: {} tensors in {}.", folder, len(tensors), dtype)
    return certificate


def check_out(folder: Path) -> None:
    """Refuse to write over anything.

    Raises:
        RefusedError: there is something already.
    """
    if folder.is_symlink() or folder.exists():
        if folder.is_symlink() or not folder.is_dir():
            raise RefusedError(f"out={folder}: not a folder; name one that does not exist yet")
        if any(folder.iterdir()):
            raise RefusedError(f"out={folder}: not empty; name a folder that does not exist yet")


def write_weights(
    spec: ModelSpec, params: Any, folder: Path, dtype: str, max_shard_bytes: int
) -> list[dict[str, Any]]:
    """Write model.safetensors, or shards and their index.

    Returns:
        Of each tensor: name, our name, shape, type, file and the SHA-256 of its bytes.
    """
    from safetensors.numpy import save_file

    size = jnp.dtype(dtype).itemsize
    shards = _shards(weight_table(spec), max_shard_bytes // size)
    records: list[dict[str, Any]] = []
    for number, weights in enumerate(shards, 1):
        one = len(shards) == 1
        name = WEIGHTS if one else f"model-{number:05}-of-{len(shards):05}.safetensors"
        content: dict[str, np.ndarray] = {}
        for weight in weights:
            array = to_stored(get(params, weight.path), transposed=weight.transposed)
            content[weight.name] = array = array.astype(jnp.dtype(dtype), copy=False)
            records.append({
                "name": weight.name,
                "ours": weight.dotted,
                "transposed": weight.transposed,
                "shape": list(array.shape),
                "dtype": dtype,
                "file": name,
                "sha256": hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest(),
            })  # fmt: skip
        save_file(content, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # the library's files are readable by their owner only
    if len(shards) > 1:
        total = sum(weight.size for weights in shards for weight in weights)
        places = {record["name"]: record["file"] for record in records}
        metadata = {"total_size": total * size, "total_parameters": total}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": places})
    return records


def _shards(table: list[Weight], largest: int) -> list[list[Weight]]:
    """The weights in order, cut into parts of at most `largest` numbers, or of one weight."""
    shards: list[list[Weight]] = [[]]
    for weight in table:
        if shards[-1] and sum(w.size for w in shards[-1]) + weight.size > largest:
            shards.append([])
        shards[-1].append(weight)
    return shards


@contextmanager
def finished_or_gone(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name once all is written."""
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.unfinished-{secrets.token_hex(4)}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)  # replaces an empty folder
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
