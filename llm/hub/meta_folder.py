"""Meta's original folder of a Llama: params.json, consolidated.*.pth, tokenizer.model.

Large models come in parts, one per GPU of Meta's: most matrices are cut by rows or by columns and
are put together again here. Rows of q and k stand in the order that pairs neighbours for rotary
positions; that is turned into Hugging Face's and ours, which pairs halves of a head.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from llm.core.spec import RefusedError
from llm.hub.hf_config import spec_from_hf_config
from llm.hub.meta_tokenizer import read_meta_tokenizer
from llm.hub.pretrained import Pretrained
from llm.hub.torch_file import StoredTensor, read_torch_file
from llm.hub.weight_table import match, read_weights
from llm.models.specs import ModelSpec

# Meta's name below layers.N -> (Hugging Face's below model.layers.N, axis along which it is cut).
_BLOCK_NAMES: dict[str, tuple[str, int | None]] = {
    "attention_norm.weight": ("input_layernorm.weight", None),
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
}
_EMBEDDING, _HEAD = "tok_embeddings.weight", "output.weight"
_NAMES: dict[str, tuple[str, int | None]] = {
    _EMBEDDING: ("model.embed_tokens.weight", 0),
    "norm.weight": ("model.norm.weight", None),
    _HEAD: ("lm_head.weight", 0),
}
_W1 = "layers.0.feed_forward.w1.weight"
_IGNORED = {"rope.freqs"}  # follows from rope_theta
_KNOWN_PARAMS = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "norm_eps", "rope_theta", "use_scaled_rope"),
    *("rope_scaling_factor", "max_seq_len", "vocab_size", "multiple_of", "ffn_dim_multiplier"),
    *("max_batch_size", "model_parallel_size"),
}
_LARGEST_WITH_FACTOR_32 = 3072  # width of Llama 3.2 3B; 1B is narrower, 3.1 8B wider


def open_meta(folder: Path, source: str) -> Pretrained:
    """Everything but the weights, which are read when they are asked for.

    Args:
        folder: with params.json, consolidated.00.pth and so on, and tokenizer.model.
        source: the words that led here.

    Raises:
        RefusedError: something is missing, damaged, or of another kind.
    """
    params = _params(folder / "params.json")
    files, stored = _stored(folder, params)
    try:
        config = _hf_config(params, stored)
        spec = spec_from_hf_config(config)
        heads = (config["num_attention_heads"], config["num_key_value_heads"])
        tensors = MetaTensors(stored, heads)
        match(spec, tensors.shapes())
    except RefusedError as error:
        raise RefusedError(f"{folder}: {error}") from error
    tokenizer, stop_ids = read_meta_tokenizer(
        folder / "tokenizer.model", newer=bool(params.get("use_scaled_rope"))
    )
    if tokenizer.vocab_size > spec.vocab:
        raise RefusedError(
            f"{folder}: tokenizer.model has {tokenizer.vocab_size} tokens: expected at most "
            f"{spec.vocab}, the rows of {_EMBEDDING}"
        )
    checksums = {name: [part.checksum for part in joined.parts] for name, joined in stored.items()}
    return Pretrained(
        source=source,
        spec=spec,
        tokenizer=tokenizer,
        weights=lambda template: read_weights(spec, tensors, template),
        stop_ids=stop_ids,
        lineage={
            "format": "meta",
            "source": source,
            "files": [file.name for file in files],
            "params": params,
            # Of the CRC-32s that the archives hold, so that no weights are read for it.
            "sha256": hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest(),
        },
    )


def read_meta_spec(folder: Path) -> ModelSpec:
    """The model that params.json and the shapes of the tensors describe.

    Raises:
        RefusedError: something is missing, damaged, or of another kind.
    """
    params = _params(folder / "params.json")
    _, stored = _stored(folder, params)
    try:
        return spec_from_hf_config(_hf_config(params, stored))
    except RefusedError as error:
        raise RefusedError(f"{folder}: {error}") from error


class Joined:
    """One tensor out of its parts."""

    def __init__(self, parts: list[StoredTensor], axis: int | None) -> None:
        self.parts = parts if axis is not None else parts[:1]  # the others are copies
        self._axis = axis or 0
        shape = list(parts[0].shape)
        if axis is not None:
            shape[axis] = sum(part.shape[axis] for part in parts)
        self.shape = tuple(shape)

    def read(self) -> np.ndarray:
        """The whole tensor in the type it is stored in."""
        if len(self.parts) == 1:
            return self.parts[0].read()
        whole = np.empty(self.shape, self.parts[0].dtype)
        place = 0
        for part in self.parts:
            width = part.shape[self._axis]
            span = (slice(None),) * self._axis + (slice(place, place + width),)
            whole[span] = part.read()
            place += width
        return whole


class MetaTensors:
    """The folder's tensors under Hugging Face's names (`llm.hub.pretrained.Tensors`).

    Args:
        stored: by Meta's names.
        heads: numbers of query and of key heads.
    """

    def __init__(self, stored: dict[str, Joined], heads: tuple[int, int]) -> None:
        self._stored = {_place(name)[0]: joined for name, joined in stored.items()}
        self._heads = {"q_proj": heads[0], "k_proj": heads[1]}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        return {name: joined.shape for name, joined in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, its rows in Hugging Face's order."""
        values = self._stored[name].read()
        n_heads = self._heads.get(name.split(".")[-2])
        if n_heads is None:
            return values
        # [head, half, 2, in] -> [head, 2, half, in]
        pairs = values.reshape(n_heads, -1, 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)


def _stored(folder: Path, params: dict[str, Any]) -> tuple[list[Path], dict[str, Joined]]:
    """The files, and the tensors in them by Meta's names; no numbers are read."""
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise RefusedError(f"{folder}: no consolidated.00.pth there; expected Meta's folder")
    parts = [read_torch_file(file) for file in files]
    try:
        return files, {name: _joined(name, parts, params["dim"]) for name in _names(parts)}
    except RefusedError as error:
        raise RefusedError(f"{folder}: {error}") from error


def _params(path: Path) -> dict[str, Any]:
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: cannot be read ({error}); expected Meta's folder") from error
    if not isinstance(params, dict):
        raise RefusedError(f"{path}: expected a JSON object")
    unknown = sorted(params.keys() - _KNOWN_PARAMS)
    if unknown:
        raise RefusedError(
            f"{path}: {unknown[0]}={str(params[unknown[0]])[:80]}: not known here; the model may "
            "compute something else"
        )
    for key in ("dim", "n_layers", "n_heads"):
        if type(params.get(key)) is not int or params[key] < 1:
            raise RefusedError(f"{path}: {key}={params.get(key)}: expected a whole number from 1")
    for key in ("norm_eps", "rope_theta", "rope_scaling_factor"):
        if not isinstance(params.get(key, 1.0), (int, float)):
            raise RefusedError(f"{path}: {key}={str(params[key])[:80]}: expected a number")
    return params


def _names(parts: list[dict[str, StoredTensor]]) -> list[str]:
    """Names of the tensors, which must be the same in all parts."""
    names = parts[0].keys() - _IGNORED
    for part in parts[1:]:
        different = sorted(names ^ (part.keys() - _IGNORED))
        if different:
            raise RefusedError(f"{different[0]} is in one consolidated file and not in another")
    return sorted(names)


def _joined(name: str, parts: list[dict[str, StoredTensor]], dim: int) -> Joined:
    tensors = [part[name] for part in parts]
    first = tensors[0]
    if any(t.shape != first.shape or t.dtype != first.dtype for t in tensors):
        raise RefusedError(f"{name}: has different shapes or types in the consolidated files")
    axis = _place(name)[1]
    if name == _EMBEDDING and first.shape[-1] != dim:
        axis = 1  # Llama 1 and 2 cut the embedding by columns
    if axis is not None and len(first.shape) != 2:
        raise RefusedError(f"{name}: has shape {first.shape}, expected a matrix")
    return Joined(tensors, axis)


def _place(name: str) -> tuple[str, int | None]:
    """Hugging Face's name, and the axis along which the tensor is cut; None for copies."""
    if name in _NAMES:
        return _NAMES[name]
    words = name.split(".", 2)
    if len(words) == 3 and words[0] == "layers" and words[2] in _BLOCK_NAMES:
        hf_name, axis = _BLOCK_NAMES[words[2]]
        return f"model.layers.{words[1]}.{hf_name}", axis
    return name, None


def _hf_config(params: dict[str, Any], stored: dict[str, Joined]) -> dict[str, Any]:
    """What config.json would hold."""
    for name in (_EMBEDDING, _W1):
        if name not in stored:
            raise RefusedError(f"{name}: no such tensor, and it is needed")
    n_rows = stored[_EMBEDDING].shape[0]
    if params.get("vocab_size", -1) not in (-1, n_rows):
        raise RefusedError(f"vocab_size={params['vocab_size']}: {_EMBEDDING} has {n_rows} rows")
    return {
        "model_type": "llama",
        "vocab_size": n_rows,
        "max_position_embeddings": _context(params),
        "num_hidden_layers": params["n_layers"],
        "hidden_size": params["dim"],
        "intermediate_size": stored[_W1].shape[0],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "hidden_act": "silu",
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta", 10_000.0),
        "rope_scaling": _rope_scaling(params),
        "tie_word_embeddings": _is_tied(stored),
    }


def _context(params: dict[str, Any]) -> int:
    """Tokens the model was made for, which the folder does not say.

    131,072 from Llama 3.1 on; 16,384 for Code Llama and 8,192 for Llama 3, told by the base of
    their rotary positions; 4,096 for Llama 2 and 2,048 for Llama 1, told by norm_eps.
    """
    if isinstance(params.get("max_seq_len"), int):
        return int(params["max_seq_len"])
    if params.get("use_scaled_rope"):
        return 131_072
    by_theta = {500_000.0: 8192, 1_000_000.0: 16_384}
    llama2 = 4096 if params.get("norm_eps", 1e-5) > 5e-6 else 2048
    return by_theta.get(params.get("rope_theta", 10_000.0), llama2)


def _rope_scaling(params: dict[str, Any]) -> dict[str, Any] | None:
    """Llama 3.1's; its factor is 32 in the small models of Llama 3.2 and 8 in all others."""
    if not params.get("use_scaled_rope"):
        return None
    usual = 32.0 if params["dim"] <= _LARGEST_WITH_FACTOR_32 else 8.0
    return {
        "rope_type": "llama3",
        "factor": params.get("rope_scaling_factor") or usual,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _is_tied(stored: dict[str, Joined]) -> bool:
    """Whether the head is the embedding: it is missing, or a copy by its checksums."""
    if _HEAD not in stored:
        return True
    head, embedding = stored[_HEAD], stored[_EMBEDDING]
    return head.shape == embedding.shape and [(p.shape, p.checksum) for p in head.parts] == [
        (p.shape, p.checksum) for p in embedding.parts
    ]
