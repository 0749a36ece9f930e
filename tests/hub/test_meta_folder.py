"""Meta's original folders, written with torch.save as Meta does, and hostile ones."""

import base64
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_gguf import interleaved, random_weights, small_config
from test_gguf import load, logits, their_logits

from llm.core.spec import RefusedError
from llm.hub.meta_folder import open_meta
from llm.hub.meta_tokenizer import read_meta_tokenizer, special_names
from llm.hub.tensor_pickle import described_tensors
from llm.hub.torch_file import read_torch_file
from llm.models.specs import LlamaSpec

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
IDS_BT = np.random.default_rng(0).integers(0, N_TOKENS, (2, 40))
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


def by_transformers(
    weights: dict[str, np.ndarray], config: dict[str, Any], rope: dict[str, Any] | None = None
) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab"],
            hidden_size=config["d_model"],
            intermediate_size=config["d_mlp"],
            num_hidden_layers=config["n_layers"],
            num_attention_heads=config["n_heads"],
            num_key_value_heads=config["n_kv_heads"],
            rms_norm_eps=config["eps"],
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": config["theta"]} | (rope or {}),
            tie_word_embeddings=config["tied"],
        )
    )
    missing, _ = model.load_state_dict(
        {name: torch.from_numpy(values) for name, values in weights.items()}, strict=False
    )
    assert missing == (["lm_head.weight"] if config["tied"] else [])
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize(
    ("changes", "n_parts", "embedding_axis", "params"),
    [
        ({}, 1, 0, {}),
        ({}, 2, 0, {}),
        ({}, 2, 1, {}),
        ({"n_kv_heads": 4}, 1, 0, {"n_kv_heads": None}),
        ({"tied": True}, 1, 0, {}),
    ],
)
def test_logits_equal_transformers(
    tmp_path: Path,
    changes: dict[str, Any],
    n_parts: int,
    embedding_axis: int,
    params: dict[str, Any],
) -> None:
    config = small_config(vocab=N_TOKENS, **changes)
    weights = random_weights(config)
    write_folder(
        tmp_path, weights, config, n_parts=n_parts, embedding_axis=embedding_axis, params=params
    )
    ours = open_meta(tmp_path, "meta:x")
    expected = their_logits(by_transformers(weights, config), IDS_BT)
    np.testing.assert_allclose(logits(ours, IDS_BT), expected, rtol=1e-4, atol=1e-4)
    assert ours.spec.vocab == N_TOKENS
    assert ours.lineage["files"] == [f"consolidated.{n:02}.pth" for n in range(n_parts)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    config = small_config(vocab=N_TOKENS)
    weights = random_weights(config)
    write_folder(tmp_path, weights, config, n_parts=2, dtype=dtype)
    rounded = {k: torch.from_numpy(v).to(dtype).float().numpy() for k, v in weights.items()}
    expected = their_logits(by_transformers(rounded, config), IDS_BT)
    ours = logits(open_meta(tmp_path, "meta:x"), IDS_BT)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("params", "factor"), [({}, 32.0), ({"rope_scaling_factor": 8}, 8.0)])
def test_scaled_positions(tmp_path: Path, params: dict[str, Any], factor: float) -> None:
    config = small_config(vocab=N_TOKENS, theta=5e5, head_dim=32, d_model=128, n_layers=1)
    weights = random_weights(config)
    write_folder(tmp_path, weights, config, params={"use_scaled_rope": True} | params)
    rope = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    ids_BT = np.random.default_rng(1).integers(0, N_TOKENS, (1, 600))
    ours = open_meta(tmp_path, "meta:x")
    expected = their_logits(by_transformers(weights, config, rope), ids_BT)
    np.testing.assert_allclose(logits(ours, ids_BT), expected, rtol=2e-3, atol=2e-3)
    assert isinstance(ours.spec, LlamaSpec)
    assert ours.spec.rope_scaling.factor == factor
    assert ours.spec.max_seq_len == 131_072


def test_a_head_that_is_a_copy_of_the_embedding_is_tied(tmp_path: Path) -> None:
    config = small_config(vocab=N_TOKENS)
    weights = random_weights(config)
    assert not open_meta(write_folder(tmp_path, weights, config), "x").spec.to_json()["tied_head"]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    ours = open_meta(write_folder(tmp_path, weights, config), "x")
    assert ours.spec.to_json()["tied_head"]
    load(ours)


@pytest.mark.parametrize(
    ("params", "length"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({}, 4096),
        ({"rope_theta": 500000.0}, 8192),
        ({"rope_theta": 1e6}, 16384),
        ({"max_seq_len": 77}, 77),
    ],
)
def test_context_length(tmp_path: Path, params: dict[str, Any], length: int) -> None:
    config = small_config(vocab=N_TOKENS)
    folder = write_folder(tmp_path, random_weights(config), config, params=params)
    assert open_meta(folder, "x").spec.max_seq_len == length


def reference(text: bytes) -> list[int]:
    """tiktoken's merging of one word."""
    ranks = {token: rank for rank, token in enumerate(RANKS)}
    parts = [bytes([byte]) for byte in text]
    while True:
        pairs = [ranks.get(a + b, len(RANKS)) for a, b in pairwise(parts)]
        if text in ranks or not pairs or min(pairs) == len(RANKS):
            return [ranks[text]] if text in ranks else [ranks[part] for part in parts]
        best = pairs.index(min(pairs))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]


def test_ranked_tokens(tmp_path: Path) -> None:
    tokenizer, stops = read_meta_tokenizer(write_ranks(tmp_path / "x"), newer=True)
    n = len(RANKS)
    # One word each by Llama 3's pattern.
    for word in ["the", " the", "thin", " tether", "123", "12", "été", "aaaaa", "日本", "  ", "😀"]:
        assert tokenizer.encode(word) == reference(word.encode()), word
    for text in ["I'm  in\n\n  the 12345 été!", "\r\n\t x", "<|eot_id|>"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("12345") == [RANKS.index(b"123"), *b"45"]
    assert tokenizer.encode("<|eot_id|>x", specials=True) == [n + 9, ord("x")]
    assert tokenizer.separator == "<|end_of_text|>"
    assert tokenizer.start_id == n
    assert stops == (n + 1, n + 8, n + 9)
    assert tokenizer.vocab_size == n + 256


def test_names_of_special_tokens() -> None:
    older, newer = special_names(newer=False), special_names(newer=True)
    assert len(set(older)) == len(set(newer)) == 256
    assert older[:11] == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_special_token_{n}|>" for n in range(4)),
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
        "<|reserved_special_token_5|>",
    ]
    assert newer[4:6] == ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"]
    assert newer[8:12] == [
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_3|>",
    ]
    assert (older[-1], newer[-1]) == (
        "<|reserved_special_token_250|>",
        "<|reserved_special_token_247|>",
    )


def varint(number: int) -> bytes:
    low = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([byte | 0x80 for byte in low[:-1]] + low[-1:])


def field(number: int, value: int | float | bytes) -> bytes:
    match value:
        case bytes():
            return varint(number << 3 | 2) + varint(len(value)) + value
        case float():
            return varint(number << 3 | 5) + struct.pack("<f", value)
        case _:
            return varint(number << 3) + varint(value)


def sentencepiece_model(kind: int = 2) -> bytes:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    words = ["▁t", "he", "▁the", "▁", *"abcdehnortx"]
    pieces += [(word, -float(n), 1) for n, word in enumerate(words)]
    content = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + (field(3, t) if t != 1 else b""))
        for text, score, t in pieces
    )
    return content + field(2, field(3, kind)) + field(3, field(1, b"identity") + field(3, 1))


def test_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(sentencepiece_model())
    tokenizer, stops = read_meta_tokenizer(tmp_path / "x", newer=False)
    ids = tokenizer.encode("the other\n")
    assert [tokenizer.pieces[i] for i in ids] == [
        *(b" the", b" ", b"o", b"t", b"he", b"r", b"\n"),
    ]
    assert tokenizer.decode(ids) == "the other\n"
    assert (stops, tokenizer.start_id, tokenizer.separator) == ((2,), 1, "</s>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no token for the byte 0"),
        (b"YQ== 0\n", "no token for the byte 0"),
        (b"YQ== 1\n", "line 1: rank 1, expected 0"),
        (b"a b c", "line 1: expected a token in base64"),
        (sentencepiece_model(3), "SentencePiece model of type 3: expected 1"),
        (sentencepiece_model()[:-3], "not a SentencePiece model"),
        (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "not a SentencePiece model"),
    ],
)
def test_tokenizers_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RefusedError, match=f"{message}.*data.tokenizer.path"):
        read_meta_tokenizer(tmp_path / "x", newer=False)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def set_params(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        params = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps(params | changes))

    return change


def resave(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = torch.load(folder / "consolidated.00.pth")
        change(state)
        torch.save(state, folder / "consolidated.00.pth")

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("params.json"), "params.json: cannot be read"),
        (remove("consolidated.00.pth"), "no consolidated.00.pth"),
        (remove("tokenizer.model"), "tokenizer.model: cannot be read.*data.tokenizer.path"),
        (set_params(dim="wide"), "dim=wide: expected a whole number"),
        (set_params(n_layers=10**9), "1000000000 layers cannot"),
        (set_params(n_heads=3), "n_heads=3|does not fit|of another shape|must"),
        (set_params(vocab_size=5), "vocab_size=5: tok_embeddings.weight has"),
        (set_params(moe_args={}), "moe_args={}: not known"),
        (set_params(rope_theta=[]), "rope_theta=.*: expected a number"),
        (resave(lambda s: s.pop("norm.weight")), "missing: model.norm.weight"),
        (resave(lambda s: s.pop("tok_embeddings.weight")), "tok_embeddings.weight: no such"),
        (resave(lambda s: s.update(x=torch.ones(3))), "no place for: x"),
        (resave(lambda s: s.update(x=torch.ones(3, dtype=torch.int8))), "CharStorage"),
        (resave(lambda s: s.update(x=torch.ones(3, 4).T)), "strides"),
    ],
)
def test_folders_that_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    config = small_config(vocab=N_TOKENS, n_layers=1)
    damage(write_folder(tmp_path, random_weights(config), config))
    with pytest.raises(RefusedError, match=message):
        open_meta(tmp_path, "meta:x")


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_never_executed(tmp_path: Path, protocol: int) -> None:
    target, path = tmp_path / "executed", tmp_path / "x.pth"
    torch.save({"a": torch.ones(2), "b": Evil(target)}, path, pickle_protocol=protocol)
    with pytest.raises(RefusedError, match=r"its pickle names (posix|nt)\.system.*nothing of it"):
        read_torch_file(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # it would have worked


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"\x80\x02(X\x01\x00\x00\x00aios\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo of 32 GiB
        b"\x80\x04\x8e" + b"\xff" * 8 + b".",  # bytes beyond the end
        b"\x80\x02" + b"(" * 10_000 + b".",
        b"\x80\x02)" + b"\x85" * 10_000 + b".",
        b"\x80\x02" + b"N" + b"2\x86" * 60 + b".",  # a tuple of 2^60 leaves
        b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",
        b"\x80\x02].",
        b"\x80\x02}.",
        b"\x80\x02",
        b"",
        b"garbage",
    ],
)
def test_programs_that_are_no_tensors(program: bytes) -> None:
    with pytest.raises(RefusedError):
        described_tensors(program)


def test_older_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RefusedError, match="zip format"):
        read_torch_file(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RefusedError, match="zip format"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", b"")
    with pytest.raises(RefusedError, match=r"no data\.pkl"):
        read_torch_file(path)


def test_damaged_archives(tmp_path: Path) -> None:
    """Each is refused, or its tensors lie inside of it."""
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16)}, path)
    good, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(500):
        bad = bytearray(good)
        for _ in range(rng.choice([1, 2, 8])):
            bad[rng.randrange(len(bad))] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
        path.write_bytes(bad[: rng.randrange(len(bad))] if rng.random() < 0.1 else bad)
        try:
            for tensor in read_torch_file(path).values():
                assert tensor.read().nbytes <= len(bad)
        except RefusedError:
            refused += 1
    assert refused > 50
