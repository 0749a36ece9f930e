"""Evidence that an exported folder holds the model in memory: every tensor, and what it computes.

The folder is read back by our own reader and, where it is installed, by transformers. All three
models then see the same text, source code of this package; their logits must agree.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from loguru import logger

from llm.data.tokenizer import Tokenizer
from llm.hub.gguf_file import open_gguf
from llm.hub.hf_folder import open_hf_folder
from llm.hub.pretrained import Pretrained
from llm.hub.safetensors_file import SafetensorsFiles
from llm.models.binding import bind
from llm.models.specs import ModelSpec

POSITIONS = 640
# Two programs round differently: so much may logits differ, in parts of the largest one.
_TOLERANCE = 1e-3
_PACKAGES = ("lernaean", "jax", "numpy", "safetensors", "tokenizers", "transformers", "torch")


def certify(
    pretrained: Pretrained,
    params: Any,
    folder: Path,
    *,
    dtype: str,
    tensors: Sequence[dict[str, Any]],
    gguf: Path | None = None,
) -> dict[str, Any]:
    """Read back what was written, and compare.

    Args:
        pretrained, params: the model in memory.
        folder: complete but for the model card and this certificate.
        dtype: type of the stored weights.
        tensors: of each tensor that was written, name, shape, file and SHA-256.
        gguf: the same model as a GGUF file in the folder, if there is one.

    Returns:
        The certificate as JSON data. `read_back` compares our reader's model with the one in
        memory (bfloat16: so large is the effect of rounding), `transformers` compares its model
        with both, `gguf` that of the file with the one in memory. Differences are the largest
        between two logits; `greedy_agreement` is the share of positions where the likeliest next
        token is the same.

    Raises:
        RuntimeError: tensors differ, or a program computes something else from them.
    """
    _check_tensors(folder, tensors)
    again = open_hf_folder(folder, str(folder))
    if again.tokenizer.to_hf_json() != pretrained.tokenizer.to_hf_json():
        raise RuntimeError("the tokenizer that was written is not the one in memory")
    spec = pretrained.spec
    ids_T = _some_text(pretrained.tokenizer, spec)
    here_TV = _logits(spec, params, ids_T)
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), params
    )
    back_TV = _logits(again.spec, again.weights(template), ids_T)
    comparison: dict[str, Any] = {
        "positions": len(ids_T),
        "vocabulary": spec.vocab,
        "largest_logit": float(np.abs(here_TV).max()),
        "read_back": compare(back_TV, here_TV),
    }
    if dtype == "float32":
        _demand("our own reader", comparison["read_back"], here_TV)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        theirs_TV, loading = _transformers_logits(folder, ids_T)
        comparison["transformers"] = {
            "version": metadata.version("transformers"),
            **loading,
            "with_memory": compare(theirs_TV, here_TV),
            "with_read_back": compare(theirs_TV, back_TV),
        }
        _demand("transformers", comparison["transformers"]["with_read_back"], back_TV)
    else:
        comparison["transformers"] = None
        logger.warning("transformers or torch is not installed: it could not check the export.")
    if gguf is not None:
        comparison["gguf"] = _gguf_check(pretrained.tokenizer, gguf, template, ids_T, here_TV)
    sizes = [int(np.prod(tensor["shape"])) for tensor in tensors]
    return {
        "source": pretrained.source,
        "lineage": pretrained.lineage,
        "model": spec.to_json(),
        "dtype": dtype,
        "parameters": sum(sizes),
        "tokenizer": pretrained.tokenizer.fingerprint,
        "logits": comparison,
        "versions": _versions(),
        "tensors": list(tensors),
    }


def _gguf_check(
    tokenizer: Tokenizer, path: Path, template: Any, ids_T: np.ndarray, here_TV: np.ndarray
) -> dict[str, Any]:
    """Read the file back; its tokenizer must cut this text as the one in memory."""
    read = open_gguf(path, str(path))
    text = tokenizer.decode(ids_T)
    if read.tokenizer.encode(text) != tokenizer.encode(text):
        raise RuntimeError(f"the tokenizer in {path.name} is not the one in memory")
    stored = read.lineage["stored_as"]
    found = compare(_logits(read.spec, read.weights(template), ids_T), here_TV)
    if stored.keys() == {"F32"}:
        _demand("our reader of GGUF files", found, here_TV)
    return {"file": path.name, "sha256": read.lineage["sha256"], "stored_as": stored, **found}


def compare(a_TV: np.ndarray, b_TV: np.ndarray) -> dict[str, float]:
    """Largest difference of two models' logits, and how often their likeliest token agrees."""
    return {
        "max_difference": float(np.abs(a_TV - b_TV).max()),
        "greedy_agreement": float((a_TV.argmax(-1) == b_TV.argmax(-1)).mean()),
    }


def _demand(reader: str, found: dict[str, float], expected_TV: np.ndarray) -> None:
    """Refuse an export that some reader understands in another way than we do.

    Raises:
        RuntimeError: the difference is more than rounding, or there are logits that are no numbers.
    """
    allowed = _TOLERANCE * max(1.0, float(np.abs(expected_TV).max()))
    if not found["max_difference"] <= allowed:
        raise RuntimeError(
            f"{reader} computes something else from the exported weights: logits differ by "
            f"{found['max_difference']:.3g}, expected at most {allowed:.3g}; greedy agreement is "
            f"{found['greedy_agreement']:.1%}"
        )


def _check_tensors(folder: Path, tensors: Sequence[dict[str, Any]]) -> None:
    """Every tensor is on disk as it was in memory, and no other one."""
    files = SafetensorsFiles([folder / name for name in sorted({t["file"] for t in tensors})])
    written = {tensor["name"]: tensor["sha256"] for tensor in tensors}
    found = {}
    for name in files.shapes():
        raw = files.read(name).reshape(-1).view(np.uint8)
        found[name] = hashlib.sha256(raw.data).hexdigest()
    wrong = sorted(n for n in written.keys() | found.keys() if written.get(n) != found.get(n))
    if wrong:
        raise RuntimeError(f"{len(wrong)} tensors on disk differ from memory, such as {wrong[0]}")


def _some_text(tokenizer: Tokenizer, spec: ModelSpec) -> np.ndarray:
    """Tokens to compare on: more than 512, as errors of RoPE hide in short texts.

    Text, since models answer random tokens with outliers that say little about rounding.
    """
    wanted = min(POSITIONS, spec.max_seq_len)
    ids: list[int] = []
    for file in sorted(Path(__file__).parent.glob("*.py")):
        ids += [i for i in tokenizer.encode(file.read_text(encoding="utf-8")) if i < spec.vocab]
        if len(ids) >= wanted:
            break
    return np.resize(np.asarray(ids, np.int32), wanted)


def _logits(spec: ModelSpec, params: Any, ids_T: np.ndarray) -> np.ndarray:
    """fp32 scores after each position, [T, V]."""

    def forward(params: Any, ids_BT: jax.Array) -> jax.Array:
        model = bind(spec, params)
        logits_BTV: jax.Array = model.logits(model(ids_BT)[0])
        return logits_BTV[0]

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(forward)(params, jnp.asarray(ids_T[None])))


def _transformers_logits(folder: Path, ids_T: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """The same from transformers, computed in fp32, and which tensors it missed or left over."""
    import torch
    import transformers
    from transformers.utils import logging

    auto: Any = transformers.AutoModelForCausalLM
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, info = auto.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, attn_implementation="eager"
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    loading = {
        kind: sorted(map(str, info[kind]))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(loading.values()):
        raise RuntimeError(f"transformers does not find the weights it expects: {loading}")
    with torch.no_grad():
        ids_BT = torch.from_numpy(ids_T[None].astype(np.int64))
        logits_BTV = model.eval().float()(ids_BT, use_cache=False).logits
    return logits_BTV[0].numpy(), loading


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
