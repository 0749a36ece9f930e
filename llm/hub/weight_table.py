"""Weights from a Hugging Face model to our arrays and back, one after the other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from llm.core.mesh import put_whole
from llm.core.spec import RefusedError
from llm.hub.pretrained import Tensors
from llm.hub.raw_arrays import aligned_empty
from llm.hub.weight_names import HEAD, Path, Shape, weight_table
from llm.models.specs import LlamaSpec, ModelSpec

_FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
_LISTED = 10
_PREFIXES = ("transformer.", "model.")
# Constants that some files carry along: the causal mask, its fill value, RoPE's frequencies.
_BUFFERS = re.compile(
    r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
    r"|(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
)


def read_weights(spec: ModelSpec, tensors: Tensors, template: Any) -> Any:
    """The model's weights.

    At most one tensor is held beside what is finished, and the largest is read while the least is
    there, so memory never needs to hold much more than the weights themselves.

    Args:
        spec: what the model is made of.
        tensors: named as in transformers' models.
        template: nested dict of `jax.ShapeDtypeStruct`, shaped like the model's parameters; dtype
            and sharding say what becomes of each.

    Returns:
        Nested dict of arrays.

    Raises:
        RefusedError: tensors are missing, left over, of another shape or not floating point.
    """
    names = match(spec, tensors.shapes())
    _check_tied_head(spec, tensors, names)
    params: dict[str | int, Any] = {}
    for weight in sorted(weight_table(spec), key=lambda weight: -weight.size):
        leaf = get(template, weight.path)
        if leaf.shape != weight.shape:
            raise ValueError(f"{weight.dotted}: template {leaf.shape}, table {weight.shape}")
        array = _as(_read(tensors, names[weight.name]), leaf.dtype, transposed=weight.transposed)
        _put(params, weight.path, jax.block_until_ready(put_whole(array, leaf.sharding)))
        del array
    # Raises if the table and the model disagree about which weights there are.
    return jax.tree.map(lambda _, array: array, template, params)


def hf_tensors(spec: ModelSpec, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Name and content of every tensor of the model, as transformers has them.

    Args:
        spec: what the model is made of.
        params: nested dict of arrays.
    """
    for weight in weight_table(spec):
        yield weight.name, to_stored(get(params, weight.path), transposed=weight.transposed)


def match(spec: ModelSpec, stored: Mapping[str, Shape]) -> dict[str, str]:
    """Under which name each tensor of the table is stored: as in the table, or without its prefix.

    A head that is stored although it is tied is let through; whoever reads the tensors compares it
    with the embedding.

    Args:
        spec: what the model is made of.
        stored: shape of every tensor there is.

    Returns:
        From the table's names to the stored ones.

    Raises:
        RefusedError: tensors are missing, left over, or of another shape; all kinds are listed.
    """
    if spec.n_layers > len(stored):  # not worth a table: it could be as long as a number is large
        raise RefusedError(
            f"{spec.n_layers} layers cannot be made of {len(stored)} tensors; expected at least "
            "one tensor for each layer"
        )
    table = weight_table(spec)
    found: dict[str, str] = {}
    missing, misshapen = [], []
    for weight in table:
        name = _stored_name(weight.name, stored)
        if name is None:
            missing.append(f"{weight.name} {list(weight.stored_shape)}")
            continue
        found[weight.name] = name
        if stored[name] != weight.stored_shape:
            expected = list(weight.stored_shape)
            misshapen.append(f"{name} {list(stored[name])}, expected {expected}")
    known = {*found.values(), HEAD}
    stray = [
        f"{name} {list(shape)}"
        for name, shape in stored.items()
        if name not in known and not _BUFFERS.fullmatch(name)
    ]
    problems = [("missing", missing), ("that the model has no place for", stray)]
    problems.append(("of another shape", misshapen))
    said = [f"{len(names)} tensors {kind}: {_some(names)}" for kind, names in problems if names]
    if said:
        raise RefusedError(f"the weights do not fit the model; {'; '.join(said)}")
    return found


def _stored_name(name: str, stored: Mapping[str, Shape]) -> str | None:
    """The name as transformers writes a model with a head, or the one of the model without it."""
    if name in stored:
        return name
    for prefix in _PREFIXES:
        bare = name.removeprefix(prefix)
        if bare != name and bare in stored:
            return bare
    return None


def _some(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def to_stored(array: Any, *, transposed: bool) -> np.ndarray:
    """One of our arrays as the tensor that is stored for it."""
    here = np.asarray(array)
    return np.ascontiguousarray(here.T if transposed else here)


def get(tree: Any, path: Path) -> Any:
    """The leaf of a nested dict at these keys."""
    for key in path:
        tree = tree[key]
    return tree


def _read(tensors: Tensors, name: str) -> np.ndarray:
    array = tensors.read(name)
    if array.dtype not in _FLOATS:
        raise RefusedError(f"{name}: stored as {array.dtype}; expected float32, float16, bfloat16")
    return array


def _as(stored: np.ndarray, dtype: Any, *, transposed: bool) -> np.ndarray:
    """In another type and our layout; without a copy if nothing changes."""
    here = stored.T if transposed else stored
    if here.dtype == dtype and here.flags.c_contiguous:
        return here
    array = aligned_empty(here.shape, dtype)
    with np.errstate(all="ignore"):  # what does not fit becomes infinite, as in every library
        array[...] = here
    return array


def _check_tied_head(spec: ModelSpec, tensors: Tensors, names: dict[str, str]) -> None:
    """A tied head that is stored all the same must be the embedding.

    Compared by checksums, so that the two are never in memory together.

    Raises:
        RefusedError: it is something else.
    """
    tied = not isinstance(spec, LlamaSpec) or spec.tied_head
    shape = tensors.shapes().get(HEAD)
    if not tied or shape is None:
        return
    embedding = next(names[w.name] for w in weight_table(spec) if w.path == ("embedding",))
    if shape == tensors.shapes()[embedding]:
        digests = [_digest(_read(tensors, name)) for name in (HEAD, embedding)]
        if digests[0] == digests[1]:
            return
    raise RefusedError(
        f"{HEAD} differs from {embedding}, yet the configuration ties them "
        "(tie_word_embeddings=true); set it to false if the head is to be used"
    )


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()


def _put(tree: dict[str | int, Any], path: Path, value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
