"""Damaged files end in one clear refusal, or load as what they now say; never in anything else."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hf_models import add_tokenizer, llama
from safetensors.numpy import save_file

from llm.core.spec import RefusedError
from llm.hub.hf_config import hf_config, spec_from_hf_config
from llm.hub.hf_folder import open_hf_folder
from llm.hub.safetensors_file import SafetensorsFiles
from llm.hub.weight_names import weight_table

HUGE = 2**63 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose weights are all 1, and a tokenizer."""
    folder = tmp_path_factory.mktemp("mutated")
    spec = llama(n_layers=1, tied_head=True)
    (folder / "config.json").write_text(json.dumps(hf_config(spec, dtype="float32", eos_ids=[0])))
    add_tokenizer(folder)
    tensors = {w.name: np.ones(w.stored_shape, np.float32) for w in weight_table(spec)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def header_of(data: bytes) -> tuple[int, dict]:
    length = int.from_bytes(data[:8], "little")
    return length, json.loads(data[8 : 8 + length])


def with_header(data: bytes, header: dict) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + header_of(data)[0] :]


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    end = 8 + header_of(data)[0] if rng.random() < 0.8 else len(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice([rng.randrange(len(data)), rng.randrange(20), len(data) - 1])]


def lengthen(data: bytes, rng: random.Random) -> bytes:
    length = header_of(data)[0]
    wrong = rng.choice([0, 1, length - 1, length + 1, rng.randrange(2**20), 2**32, HUGE, 2**64 - 1])
    return wrong.to_bytes(8, "little") + data[8:]


def move(data: bytes, rng: random.Random) -> bytes:
    """Another place, shape or type for one tensor."""
    header = header_of(data)[1]
    info = header[rng.choice([name for name in header if name != "__metadata__"])]
    number = rng.choice([0, 1, 4, HUGE, 2**64, -1, 10**30, 1.5, None, rng.randrange(10**5)])
    match rng.randrange(5):
        case 0:
            info["data_offsets"][rng.randrange(2)] = number
        case 1:
            info["shape"] = rng.choice([[], [number], [HUGE, HUGE], [0, HUGE], info["shape"][::-1]])
        case 2:
            info["dtype"] = rng.choice(["F64", "F16", "I32", "BF16", "F4", "X", 7, None])
        case 3:
            info.pop(rng.choice(list(info)))
        case 4:
            header["extra"] = info
    return with_header(data, header)


def test_a_thousand_damaged_weight_files(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    file = tmp_path / "model.safetensors"
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    spec = llama(n_layers=1)
    table = {w.name: w.stored_shape for w in weight_table(spec)}
    rng = random.Random(0)
    outcomes = {"refused": 0, "read": 0, "same shapes": 0}
    for number in range(1000):
        data = [flip, truncate, lengthen, move][number % 4](whole, rng)
        file.write_bytes(data)
        try:
            tensors = SafetensorsFiles([file])
            for name in tensors.shapes():
                assert tensors.read(name).nbytes <= len(data)
            outcomes["same shapes"] += tensors.shapes() == table
            outcomes["read"] += 1
        except RefusedError as error:
            assert len(str(error)) < 500
            outcomes["refused"] += 1
    assert outcomes["refused"] > 700
    assert outcomes["same shapes"] > 30  # bits of the data, which nothing protects


CHANGES = [
    None, True, False, 0, -1, 1.5, "", "x" * 1000, [], {}, [[]], {"rope_type": "yarn"}, 10**400,
    float("nan"), float("inf"), HUGE, ["LlamaForCausalLM"], {"rope_type": []},
    {"rope_type": "linear"}, {"rope_type": "linear", "factor": 10**400},
    {"type": "llama3", "factor": "8"}, 2**31 - 1,
]  # fmt: skip


def test_configurations_with_nonsense_in_them(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key in config:
        for value in CHANGES:
            try:
                spec_from_hf_config({**config, key: value})
            except RefusedError as error:
                assert len(str(error)) < 700


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_json(name: str, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    whole = (tmp_path / name).read_bytes()
    rng = random.Random(0)
    nested = b"[" * 100_000
    damaged = [b"", b"[]", b"null", b"\xff\xfe", nested, whole[: len(whole) // 2]]
    for _ in range(40):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(changed))
    for data in damaged:
        (tmp_path / name).write_bytes(data)
        try:
            open_hf_folder(tmp_path, "x")
        except RefusedError:
            continue
        assert len(data) == len(whole)


def test_what_is_no_file_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(RefusedError, match="no weights; expected"):
        open_hf_folder(tmp_path, "x")
