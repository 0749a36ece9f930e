"""GGUF files: against transformers reading the same file, and damaged ones."""

import functools
import math
import random
import resource
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from small_gguf import TOKENS, TYPES, random_weights, small_config, write_gguf

from llm.core.spec import RefusedError
from llm.hub import gguf_file
from llm.hub.gguf_file import open_gguf
from llm.hub.gguf_header import QUANTISATIONS, read_header
from llm.hub.pretrained import Pretrained
from llm.models.binding import bind
from llm.models.parameter import parameters
from llm.models.specs import LlamaSpec

IDS_BT = np.random.default_rng(0).integers(0, len(TOKENS), (2, 40))


def load(pretrained: Pretrained) -> Any:
    """The weights, fp32, on one device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: parameters(pretrained.spec.build(jax.random.key(0))))
    return pretrained.weights(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=here), shapes)
    )


def logits(pretrained: Pretrained, ids_BT: np.ndarray = IDS_BT) -> np.ndarray:
    @jax.jit
    def forward(params: Any, ids_BT: Any) -> Any:
        model = bind(pretrained.spec, params)
        return model.logits(model(ids_BT)[0])

    return np.asarray(forward(load(pretrained), ids_BT))


def by_transformers(folder: Path, name: str = "x.gguf") -> Any:
    """What from_pretrained(gguf_file=...) makes, which wants a package that does nothing here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with (
        mock.patch("gguf.GGUFReader", functools.cache(gguf.GGUFReader)),  # slow, and called again
        mock.patch("gguf.get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        no_init_weights(),
    ):
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        read = load_gguf_checkpoint(folder / name, return_tensors=True, model_to_load=model)
    missing, stray = model.load_state_dict(read["tensors"], strict=False)
    assert not stray
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()


def their_logits(model: Any, ids_BT: np.ndarray = IDS_BT) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids_BT)).logits.numpy()


@pytest.mark.parametrize(
    "kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
)
def test_types_equal_transformers(tmp_path: Path, kind: Type) -> None:
    config = small_config()
    write_gguf(tmp_path / "x.gguf", config, random_weights(config), kind)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )
    assert ours.lineage["stored_as"][kind.name] > 1


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q6_K])
def test_k_quantised_types_equal_transformers(tmp_path: Path, kind: Type) -> None:
    config = small_config(d_model=256, d_mlp=256, head_dim=64, n_layers=1)
    write_gguf(tmp_path / "x.gguf", config, random_weights(config), kind)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "changes",
    [{"tied": True}, {"n_kv_heads": 4}, {"n_kv_heads": 1}, {"theta": 5e5}, {"eps": 1e-2}],
)
def test_shapes_equal_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = small_config(**changes)
    write_gguf(tmp_path / "x.gguf", config, random_weights(config))
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )


def test_head_dim_of_its_own(tmp_path: Path) -> None:
    config = small_config(head_dim=32)
    keys = {"llama.attention.key_length": 32, "llama.attention.value_length": 32}
    write_gguf(tmp_path / "x.gguf", config, random_weights(config), metadata=keys)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )


def test_qwen2_is_not_turned_and_has_biases(tmp_path: Path) -> None:
    config = small_config()
    weights = random_weights(config)
    for block in range(config["n_layers"]):
        for name, heads in {"q": 4, "k": 2, "v": 2}.items():
            bias = np.linspace(-1, 1, heads * 16, dtype=np.float32)
            weights[f"model.layers.{block}.self_attn.{name}_proj.bias"] = bias
    keys = {"tokenizer.ggml.pre": "qwen2"}
    write_gguf(tmp_path / "x.gguf", config, weights, architecture="qwen2", metadata=keys)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    np.testing.assert_allclose(
        logits(ours), their_logits(by_transformers(tmp_path)), rtol=1e-4, atol=1e-4
    )


def test_tensors_are_those_that_were_written(tmp_path: Path) -> None:
    config = small_config()
    weights = random_weights(config)
    path = write_gguf(tmp_path / "x.gguf", config, weights)
    tensors = gguf_file.GGUFTensors(path, read_header(path).tensors, (4, 2))
    assert tensors.shapes() == {name: values.shape for name, values in weights.items()}
    for name, values in weights.items():
        np.testing.assert_array_equal(tensors.read(name), values)


def llama3_divisors(
    head_dim: int, theta: float, factor: float, low: float, high: float, original: int
) -> np.ndarray:
    """As llama.cpp's converter computes them."""
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(
    ("factor", "low", "high", "original"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 8.0, 2048), (1.0, 1.0, 4.0, 8192)],
)
def test_llama3_scaling_is_recovered(
    tmp_path: Path, factor: float, low: float, high: float, original: int
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = small_config(d_model=128, head_dim=32, theta=5e5, n_layers=1)
    weights = random_weights(config)
    extra = {"rope_freqs.weight": llama3_divisors(32, 5e5, factor, low, high, original)}
    write_gguf(tmp_path / "x.gguf", config, weights, extra=extra)
    ours = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf")
    assert isinstance(ours.spec, LlamaSpec)
    assert ours.spec.rope_scaling.factor == factor
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab"],
            hidden_size=128,
            intermediate_size=config["d_mlp"],
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=config["eps"],
            max_position_embeddings=2048,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            },
        )
    )
    theirs.load_state_dict({name: torch.from_numpy(v) for name, v in weights.items()})
    ids_BT = np.random.default_rng(1).integers(0, len(TOKENS), (1, 600))
    np.testing.assert_allclose(
        logits(ours, ids_BT), their_logits(theirs.eval(), ids_BT), rtol=2e-3, atol=2e-3
    )


def test_linear_scaling(tmp_path: Path) -> None:
    config = small_config()
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "x.gguf", config, random_weights(config), metadata=keys)
    spec = open_gguf(tmp_path / "x.gguf", "gguf:x.gguf").spec
    assert isinstance(spec, LlamaSpec)
    assert (spec.rope_scaling.type, spec.rope_scaling.factor) == ("linear", 4.0)


def test_what_else_the_file_says(tmp_path: Path) -> None:
    config = small_config()
    keys = {"general.name": "Tiny", "general.license": "mit"}
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), metadata=keys)
    ours = open_gguf(path, "gguf:x.gguf")
    assert ours.source == "gguf:x.gguf"
    assert ours.chat_template == "{{ messages[0]['content'] }}"
    assert ours.stop_ids == (TOKENS.index("<|im_end|>"),)
    assert ours.lineage["sha256"] == gguf_file.sha256_of(path)
    assert (ours.lineage["name"], ours.lineage["license"]) == ("Tiny", "mit")
    assert ours.spec.max_seq_len == 1024


def test_sizes_of_blocks_are_the_librarys() -> None:
    for number, (name, values, size) in QUANTISATIONS.items():
        assert Type(number).name == name
        assert gguf.GGML_QUANT_SIZES[Type(number)] == (values, size)


def test_large_tensors_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), Type.Q8_0)
    whole = jax.tree.leaves(load(open_gguf(path, "x")))
    monkeypatch.setattr(gguf_file, "_VALUES_AT_ONCE", 256)
    for a, b in zip(jax.tree.leaves(load(open_gguf(path, "x"))), whole, strict=True):
        np.testing.assert_array_equal(a, b)


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


def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    """Each is refused, or is what it says: a model that fits its own header."""
    config = small_config(vocab=len(TOKENS), d_model=32, d_mlp=32, head_dim=8, n_layers=1)
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(config), Type.Q8_0)
    good = path.read_bytes()
    data = min(info.start for info in read_header(path).tensors.values())
    refused, loaded = 0, 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bad in mutations(good, data, 1000):
        path.write_bytes(bad)
        try:
            header = read_header(path)
            pretrained = open_gguf(path, "gguf:x.gguf")
            tensors = gguf_file.GGUFTensors(path, header.tensors, None)
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
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 * 2**10  # KiB


def test_types_of_tokens_are_taken_from_the_file(tmp_path: Path) -> None:
    config = small_config()
    types = [*TYPES[:-4], 1, 3, 3, 1]
    path = write_gguf(
        tmp_path / "x.gguf",
        config,
        random_weights(config),
        metadata={"tokenizer.ggml.token_type": types},
    )
    tokenizer = open_gguf(path, "gguf:x.gguf").tokenizer
    assert set(tokenizer.special_ids) == {"<|im_start|>", "<|im_end|>"}
