"""Files of torch.save are read without executing anything, hostile ones too."""

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.core.spec import RefusedError
from llm.hub.tensor_pickle import described_tensors
from llm.hub.torch_file import read_torch_file


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
