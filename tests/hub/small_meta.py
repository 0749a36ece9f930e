"""Small folders in Meta's original layout, written with torch.save as Meta does."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_gguf import interleaved

WORDS = [
    b"th",
    b" th",
    b"the",
    b" the",
    b"in",
    b"12",
    b"123",
    b"  ",
    b"    ",
    b"er",
    b"or",
    b"aa",
    b"aaa",
]
RANKS = [*(bytes([byte]) for byte in range(256)), *WORDS, "é".encode()]
N_TOKENS = len(RANKS) + 256
NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def write_folder(
    folder: Path,
    weights: dict[str, np.ndarray],
    config: dict[str, Any],
    *,
    n_parts: int = 1,
    dtype: torch.dtype = torch.float32,
    embedding_axis: int = 0,
    params: dict[str, Any] | None = None,
) -> Path:
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(n_parts)]
    for name, values in weights.items():
        meta_name, turned = name, values
        for theirs, metas in NAMES.items():
            meta_name = meta_name.replace(theirs, metas)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            turned = interleaved(values, config["n_heads" if "q_proj" in name else "n_kv_heads"])
        axis = 1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0
        axis = embedding_axis if "embed" in name else axis
        for number, part in enumerate(parts):
            piece = turned if turned.ndim == 1 else np.split(turned, n_parts, axis)[number]
            part[meta_name] = torch.from_numpy(piece.copy()).to(dtype)
    for number, part in enumerate(parts):
        part["rope.freqs"] = torch.ones(4, dtype=dtype)
        torch.save(part, folder / f"consolidated.{number:02}.pth")
    content = {
        "dim": config["d_model"],
        "n_layers": config["n_layers"],
        "n_heads": config["n_heads"],
        "n_kv_heads": config["n_kv_heads"],
        "norm_eps": config["eps"],
        "rope_theta": config["theta"],
        "vocab_size": -1,
        "multiple_of": 32,
    } | (params or {})
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "params.json").write_text(json.dumps(content))
    write_ranks(folder / "tokenizer.model")
    return folder


def write_ranks(path: Path) -> Path:
    lines = [f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(RANKS)]
    path.write_text("".join(lines))
    return path
