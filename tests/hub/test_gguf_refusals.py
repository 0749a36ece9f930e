"""GGUF files that cannot be read, that lie and that are damaged."""

import random
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_logits import load
from gguf import GGMLQuantizationType as Type
from small_gguf import TOKENS, random_weights, small_config, write_gguf

from llm.core.host_memory import peak_memory
from llm.core.spec import RefusedError
from llm.hub import gguf_file
from llm.hub.gguf_file import open_gguf
from llm.hub.gguf_header import read_header
from llm.hub.gguf_layout import NAMES, Layout


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": None}, "llama.block_count: missing"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "rms_epsilon: missing"),
        ({"llama.context_length": 0}, "llama.context_length=0: expected a whole number"),
        ({"llama.embedding_length": "wide"}, "llama.embedding_length=wide"),
        ({"llama.block_count": 2**31}, "llama.block_count=2147483648"),
        ({"llama.block_count": 2**30}, "1073741824 layers cannot"),
        ({"llama.block_count": 3}, "missing: model.layers.2"),
        ({"llama.block_count": 1}, "no place for: model.layers.1"),
        ({"llama.feed_forward_length": 128}, "of another shape"),
        ({"llama.attention.head_count": 3}, "n_kv_heads=2|rope.dimension_count"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count=8: expected the width"),
        ({"llama.rope.freq_base": 0.0}, "rope.freq_base=0.0: expected a number greater"),
        ({"llama.rope.freq_base": float("nan")}, "rope.freq_base=nan"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type=yarn: expected none or linear"),
        ({"llama.expert_count": 8}, "llama.expert_count=8"),
        ({"llama.attention.sliding_window": 256}, "attention.sliding_window=256"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    config = small_config()
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), metadata=metadata)
    with pytest.raises(RefusedError, match=message):
        open_gguf(path, "gguf:x.gguf")


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    config = small_config()
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), architecture="gemma")
    with pytest.raises(RefusedError, match="=gemma: expected one of llama, qwen2"):
        open_gguf(path, "gguf:x.gguf")


@pytest.mark.parametrize(
    ("divisors", "message"),
    [
        (np.ones(5), "5 values: expected 8"),
        (np.array([1, 1, 3, 1, 2, 9, 4, 8]), "do not follow Llama 3.1's formula"),
        (np.zeros(8), "at least 1"),
        (np.full(8, np.nan), "not finite"),
    ],
)
def test_divisors_that_are_refused(tmp_path: Path, divisors: np.ndarray, message: str) -> None:
    config = small_config()
    extra = {"rope_freqs.weight": divisors.astype(np.float32)}
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), extra=extra)
    with pytest.raises(RefusedError, match=message):
        open_gguf(path, "gguf:x.gguf")


def test_stray_and_unreadable_tensors_are_refused(tmp_path: Path) -> None:
    config = small_config()
    weights = random_weights(config)
    stray = {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    path = write_gguf(tmp_path / "a.gguf", config, weights, extra=stray)
    with pytest.raises(RefusedError, match=r"no place for: blk\.0\.attn_q_norm"):
        open_gguf(path, "gguf:a.gguf")
    path = write_gguf(tmp_path / "b.gguf", config, weights, extra={"x": np.ones(4, np.int8)})
    with pytest.raises(RefusedError, match="'x' is stored as I8: expected one of F32"):
        open_gguf(path, "gguf:b.gguf")
    weights["model.norm.weight"][3] = np.inf
    path = write_gguf(tmp_path / "c.gguf", config, weights)
    with pytest.raises(RefusedError, match=r"norm\.weight: it has values that are not"):
        load(open_gguf(path, "gguf:c.gguf"))


def test_no_such_file_and_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="cannot be read: No such file"):
        open_gguf(tmp_path / "x.gguf", "gguf:x")
    with pytest.raises(RefusedError, match="cannot be read: Is a directory"):
        open_gguf(tmp_path, "gguf:x")
    for content in (b"", b"GGUF", b"GGUF" + bytes(16), b"PK" + bytes(100)):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(RefusedError, match="not a GGUF"):
            open_gguf(tmp_path / "x.gguf", "gguf:x")


def header(*, version: int = 3, tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(version=1), "GGUF version 1"),
        (header(version=3 << 24), "GGUF version 50331648"),
        (header(tensors=2**63), "tensors: 9223372036854775808 cannot be"),
        (header(entries=2**40), "metadata entries: 1099511627776 cannot be"),
        (header(entries=1, rest=struct.pack("<Q", 2**50) + bytes(64)), "length of a metadata key"),
        (header(entries=1, rest=string(b"\xff" * 9) + bytes(9)), "not UTF-8"),
        (header(entries=1, rest=string(b"k") + struct.pack("<I", 77) + bytes(8)), "type 77"),
        (
            header(entries=1, rest=string(b"k") + struct.pack("<IIQ", 9, 6, 2**60) + bytes(9)),
            "k: 1152921504606846976 cannot be",
        ),
        (
            header(entries=1, rest=string(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(9)),
            "list of type 9",
        ),
        (
            header(tensors=1, rest=string(b"t") + struct.pack("<IQIQ", 1, 2**62, 0, 0)),
            "would lie at bytes",
        ),
        (
            header(tensors=1, rest=string(b"t") + struct.pack("<IQQIQ", 2, 4, 0, 0, 0)),
            "has shape \\(0, 4\\)",
        ),
        (header(tensors=1, rest=string(b"t") + struct.pack("<IQQ", 99, 4, 0)), "99 dimensions"),
        (
            header(tensors=1, rest=string(b"t") + struct.pack("<IQIQ", 1, 33, 8, 0)),
            "multiple of 32",
        ),
    ],
)
def test_headers_that_lie(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match=message):
            read_header(tmp_path / "x.gguf")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def mutations(good: bytes, header_size: int, count: int) -> Iterator[bytes]:
    """Damaged copies: most of them in the header, where the structure is."""
    rng = random.Random(0)
    extremes = [0, 1, 0x7F, 0x80, 0xFF]
    for _ in range(count):
        bad = bytearray(good)
        kind = rng.randrange(6)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            place = rng.randrange(header_size if rng.random() < 0.9 else len(bad) - 8)
            match kind:
                case 0:
                    bad[place] ^= 1 << rng.randrange(8)
                case 1:
                    bad[place] = rng.choice(extremes)
                case 2:
                    bad[place : place + 4] = struct.pack("<I", rng.choice([0, 2**31, 2**32 - 1]))
                case 3:
                    bad[place : place + 8] = struct.pack("<Q", rng.choice([2**63, 2**40, 2**20]))
                case 4:
                    del bad[place : place + rng.randrange(1, 64)]
                case 5:
                    bad[place:place] = rng.randbytes(rng.randrange(1, 64))
        yield bytes(bad[: rng.randrange(len(bad))] if rng.random() < 0.1 else bad)


def forget_peak() -> None:
    """Have this process' peak of memory begin at what it holds now (Linux; others never forget)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    """Each is refused, or is what it says: a model that fits its own header."""
    config = small_config(vocab=len(TOKENS), d_model=32, d_mlp=32, head_dim=8, n_layers=1)
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), Type.Q8_0)
    good = path.read_bytes()
    data = min(info.start for info in read_header(path).tensors.values())
    refused, loaded = 0, 0
    forget_peak()
    memory = peak_memory()
    for bad in mutations(good, data, 1000):
        path.write_bytes(bad)
        try:
            header = read_header(path)
            pretrained = open_gguf(path, "gguf:x.gguf")
            tensors = gguf_file.GGUFTensors(path, header.tensors, Layout(NAMES["llama"], False, {}))
            for name in tensors.shapes():
                assert np.isfinite(tensors.read(name)).all()
            assert pretrained.tokenizer.vocab_size <= pretrained.spec.vocab
            pretrained.tokenizer.decode(pretrained.tokenizer.encode("the tin 12 <|im_end|> é"))
            loaded += 1
        except RefusedError as error:
            assert len(str(error)) < 2000
            refused += 1
    assert refused > 200
    assert loaded > 20
    assert peak_memory() - memory < 200 * 2**20
