"""A GGUF file of the llama, qwen2 or gpt2 architecture as a pretrained model, dequantised."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm.core.spec import RefusedError
from llm.hub.gguf_config import hf_config
from llm.hub.gguf_header import QUANTISATIONS, Header, TensorInfo, read_header
from llm.hub.gguf_layout import Layout
from llm.hub.gguf_rope import ROPE_DIVISORS
from llm.hub.gguf_tokenizer import read_tokenizer
from llm.hub.hf_config import spec_from_hf_config
from llm.hub.pretrained import Pretrained
from llm.hub.raw_arrays import aligned_empty
from llm.hub.weight_table import match, read_weights
from llm.models.specs import ModelSpec

_VALUES_AT_ONCE = 2**18


def open_gguf(path: Path, source: str) -> Pretrained:
    """Everything but the weights, which are read when they are asked for.

    Args:
        path: the file.
        source: the words that led here.

    Raises:
        RefusedError: it cannot be read, is incomplete, or holds another kind of model.
    """
    header = read_header(path)
    metadata, infos = header.metadata, dict(header.tensors)
    try:
        config = _config(path, header)
        spec = spec_from_hf_config(config)
        infos.pop(ROPE_DIVISORS, None)
        tensors = GGUFTensors(path, infos, Layout.of(config))
        match(spec, tensors.shapes())
        text = read_tokenizer(metadata, config["vocab_size"])
    except RefusedError as error:
        raise RefusedError(f"{path}: {error}") from error
    return Pretrained(
        source=source,
        spec=spec,
        tokenizer=text.tokenizer,
        weights=lambda template: read_weights(spec, tensors, template),
        chat_template=text.chat_template,
        stop_ids=text.stop_ids,
        lineage={
            "format": "gguf",
            "source": source,
            "file": path.name,
            "sha256": sha256_of(path),
            "name": metadata.get("general.name"),
            "licence": metadata.get("general.license"),
            "stored_as": dict(Counter(QUANTISATIONS[info.type][0] for info in infos.values())),
        },
    )


def read_gguf_spec(path: Path) -> ModelSpec:
    """The model that the file's header describes.

    Raises:
        RefusedError: it cannot be read, or holds another kind of model.
    """
    header = read_header(path)
    try:
        return spec_from_hf_config(_config(path, header))
    except RefusedError as error:
        raise RefusedError(f"{path}: {error}") from error


def _config(path: Path, header: Header) -> dict[str, Any]:
    """What config.json would hold."""
    infos = dict(header.tensors)
    divisors = infos.pop(ROPE_DIVISORS, None)
    return hf_config(
        header.metadata, infos, None if divisors is None else _dequantised(path, divisors).ravel()
    )


def sha256_of(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class GGUFTensors:
    """The file's tensors under Hugging Face's names, fp32 (`llm.hub.pretrained.Tensors`).

    Args:
        path: the file.
        infos: its tensors, by their names there.
        layout: how they stand there.
    """

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo], layout: Layout) -> None:
        self._path = path
        self._infos = {layout.hf_name(name): info for name, info in infos.items()}
        self._layout = layout

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        return {n: self._layout.shape(n, info.shape) for n, info in self._infos.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as it stands in Hugging Face's models.

        Raises:
            RefusedError: the file got shorter, or the tensor has values that are not finite.
        """
        try:
            values = _dequantised(self._path, self._infos[name])
        except (RefusedError, OSError) as error:
            raise RefusedError(f"{self._path}: {name}: {error}") from error
        return self._layout.to_hf(name, values)


def _dequantised(path: Path, info: TensorInfo) -> np.ndarray:
    """One tensor as fp32, in parts: the library takes several times their memory."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(info.type)
    _, block_values, block_bytes = QUANTISATIONS[info.type]
    values = aligned_empty((math.prod(info.shape),), np.float32)
    with path.open("rb") as file:
        file.seek(info.start)
        step = _VALUES_AT_ONCE  # a multiple of every block
        for start in range(0, len(values), step):
            part = values[start : start + step]
            n_bytes = len(part) // block_values * block_bytes
            stored = np.frombuffer(file.read(n_bytes), np.uint8)
            if len(stored) != n_bytes:
                raise RefusedError("the file ends within it")
            with np.errstate(all="ignore"):  # damaged scales; refused below
                part[:] = dequantize(stored, kind)
            if not np.isfinite(part).all():
                raise RefusedError("it has values that are not finite; the file is damaged")
    return values.reshape(info.shape)
