"""A folder as Hugging Face lays it out: config.json, tokenizer.json and safetensors.

Nothing in it is trusted: no code and no pickle is run, and no file outside of it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer
from llm.hub.hf_config import spec_from_hf_config
from llm.hub.pretrained import Pretrained
from llm.hub.safetensors_file import SafetensorsFiles
from llm.hub.weight_table import match, read_weights
from llm.models.specs import ModelSpec

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LARGEST_JSON = 256 * 2**20  # bytes

# How tokens are to be drawn, in generation_config.json.
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_LARGEST = 1e9  # of these; JSON may also say NaN, Infinity, or a number of a thousand digits


def open_hf_folder(folder: Path, source: str) -> Pretrained:
    """The model in a folder; of the weights only names, types and shapes are read yet.

    Args:
        folder: has config.json, tokenizer.json and model.safetensors (or an index and its shards).
        source: the words that led here.

    Raises:
        RefusedError: something is missing, damaged, or cannot be represented here.
    """
    config = _json_object(folder, "config.json")
    spec = read_hf_spec(folder)
    tensors = SafetensorsFiles(_weight_files(folder))
    _check_index(folder, tensors)
    match(spec, tensors.shapes())
    tokenizer_config = _json_object(folder, "tokenizer_config.json", optional=True)
    tokenizer = _tokenizer(folder)
    if tokenizer.vocab_size > spec.vocab:
        raise RefusedError(
            f"the tokenizer has tokens up to {tokenizer.vocab_size - 1}, config.json "
            f"vocab_size={spec.vocab}: expected an embedding for every token"
        )
    return Pretrained(
        source=source,
        spec=spec,
        tokenizer=tokenizer,
        weights=lambda template: read_weights(spec, tensors, template),
        chat_template=_chat_template(folder, tokenizer_config),
        stop_ids=_stop_ids(folder, config, spec),
        sampling=_sampling(folder),
        lineage=_lineage(folder, source, list(tensors.files)),
    )


def read_hf_spec(folder: Path) -> ModelSpec:
    """The model that config.json describes; nothing else is read.

    Raises:
        RefusedError: it is missing, damaged, or cannot be represented here.
    """
    return spec_from_hf_config(_json_object(folder, "config.json"))


def inside(folder: Path, name: str) -> Path:
    """The file of that name in a folder, which must not lead out of it.

    In the hub's cache the files of a snapshot are links to `blobs/` beside the snapshots; no
    other way out is taken.

    Raises:
        RefusedError: it does lead out.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise RefusedError(f"{name!r}: expected the name of a file in the folder, without a path")
    path = folder / name
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise RefusedError(f"{name}: {error}") from None
    if not any(target.is_relative_to(place) for place in allowed):
        raise RefusedError(
            f"{name}: a link out of the folder, to {target}; put the file itself there"
        )
    return path


def _weight_files(folder: Path) -> list[Path]:
    """One file, or the shards that the index names."""
    if inside(folder, WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not inside(folder, INDEX).is_file():
        pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        if pickles:
            raise RefusedError(
                f"{pickles[0]}: pickled weights can run any program when they are opened, so they "
                f"never are; convert them to {WEIGHTS} first (transformers' save_pretrained does)"
            )
        raise RefusedError(f"{folder}: no weights; expected {WEIGHTS} or {INDEX}")
    shards = sorted({str(shard) for shard in _weight_map(folder).values()})
    for shard in shards:
        if not shard.endswith(".safetensors"):
            raise RefusedError(f"{INDEX}: {shard[:80]!r}: expected the name of a safetensors file")
        if not inside(folder, shard).is_file():
            raise RefusedError(f"{shard}: {INDEX} names it and it is not there")
    return [folder / shard for shard in shards]


def _weight_map(folder: Path) -> Mapping[str, Any]:
    """From tensors to the shards they lie in."""
    names = _json_object(folder, INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise RefusedError(f"{INDEX}: no weight_map; expected the shard of each tensor")
    return names


def _check_index(folder: Path, tensors: SafetensorsFiles) -> None:
    """The shards must hold what the index says they do."""
    if WEIGHTS in tensors.files:
        return
    said = _weight_map(folder)
    there = {name: file for file, names in tensors.files.items() for name in names}
    wrong = sorted(name for name in said.keys() | there.keys() if said.get(name) != there.get(name))
    if wrong:
        name = wrong[0]
        raise RefusedError(
            f"{INDEX}: {len(wrong)} tensors are not where it says, such as {name}: expected in "
            f"{said.get(name, 'no shard')}, found in {there.get(name, 'none')}"
        )


def _tokenizer(folder: Path) -> Tokenizer:
    """From tokenizer.json, or SentencePiece's tokenizer.model."""
    names = ("tokenizer.json", "tokenizer.model")
    name = next((name for name in names if inside(folder, name).is_file()), None)
    if name is None:
        raise RefusedError(f"{folder}: no {' or '.join(names)}")
    try:
        return Tokenizer.load(str(folder / name))
    except RefusedError as error:
        reason = str(error).removeprefix(f"path={folder / name}: ")
        raise RefusedError(
            f"{name}: {reason}; tokenizer_config.json can name a separator as eos_token"
        ) from None


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """From its own file, or as transformers used to store it."""
    path = inside(folder, "chat_template.jinja")
    if path.is_file():
        return _text(path)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [item for item in template if isinstance(item, dict)]
        template = next((t.get("template") for t in named if t.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise RefusedError("tokenizer_config.json: chat_template: expected text, or named texts")
    return template


def _stop_ids(folder: Path, config: Mapping[str, Any], spec: ModelSpec) -> tuple[int, ...]:
    """Ids that end a text: those of generation_config.json count before those of config.json."""
    generation = _json_object(folder, "generation_config.json", optional=True)
    for name, values in [("generation_config.json", generation), ("config.json", config)]:
        ids = values.get("eos_token_id")
        if ids is None:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        for index in ids:
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < spec.vocab:
                raise RefusedError(
                    f"{name}: eos_token_id={str(index)[:80]}: expected tokens from 0 to "
                    f"{spec.vocab - 1}"
                )
        return tuple(dict.fromkeys(ids))
    return ()


def _sampling(folder: Path) -> dict[str, float]:
    generation = _json_object(folder, "generation_config.json", optional=True)
    found = {name: generation[name] for name in _SAMPLING if name in generation}
    return {k: v for k, v in found.items() if isinstance(v, int | float) and abs(v) < _LARGEST}


def _lineage(folder: Path, source: str, weight_files: list[str]) -> dict[str, Any]:
    """Which files these were, and what the model card says about rights and parents."""
    home = folder.resolve()
    lineage: dict[str, Any] = {"format": "huggingface", "source": source, "folder": str(home)}
    if home.parent.name == "snapshots":
        lineage["revision"] = home.name  # the commit: so the hub's cache names its folders
    for name in ("config.json", "tokenizer.json", "tokenizer.model"):
        if not (folder / name).is_file():
            continue
        content = (folder / name).read_bytes()
        file = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        lineage.setdefault("files", {})[name] = file
    for name in weight_files:
        path = (folder / name).resolve()
        lineage["files"][name] = {"bytes": path.stat().st_size}
        if len(path.name) == 64:  # the cache names large files by their checksum
            lineage["files"][name]["sha256"] = path.name
    return lineage | _card(inside(folder, "README.md"))


def _card(path: Path) -> dict[str, Any]:
    """Licence and parents from the head of a model card."""
    from huggingface_hub import metadata_load

    if not path.is_file():
        return {}
    try:
        data = metadata_load(path)
    except Exception:  # from several libraries; a card that cannot be read stops no model
        return {}
    card = data if isinstance(data, dict) else {}
    names = {"license": "licence", "license_name": "licence_name", "base_model": "parents"}
    said = {ours: card.get(theirs) for theirs, ours in names.items()}
    return {name: value for name, value in said.items() if value and _is_text(value)}


def _is_text(value: Any) -> bool:
    """Text, or a list of texts."""
    return all(isinstance(item, str) for item in (value if isinstance(value, list) else [value]))


def _json_object(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is optional and not there."""
    path = inside(folder, name)
    if not path.is_file():
        if optional:
            return {}
        raise RefusedError(f"{folder}: no {name}")
    try:
        data = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{name}: not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        raise RefusedError(f"{name}: expected a JSON object")
    return data


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise RefusedError(f"{path.name}: larger than {_LARGEST_JSON} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path.name}: not readable as text ({error})") from None
