"""The sides of a comparison: processes of their own that take turns, for the benches beside torch.

`torch` is torch as pip installs it. On processors by AMD its MKL does not take its AVX512 path, so
there is another side: `torch-avx512` tells MKL otherwise (a library loaded before it; takes a C
compiler), `torch-avx2` on processors by Intel is how torch would run on those by AMD.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Threads of torch wait for more work at full speed for a while: that is not the next side's time.
_PAUSE = 0.5  # seconds

_BY_INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def names(device: str) -> tuple[str, ...]:
    """The sides that are compared on a `cpu` or a `gpu`."""
    if device == "gpu":
        return ("ours", "torch")
    return ("ours", "torch", "torch-avx512" if by_amd() else "torch-avx2")


def by_amd() -> bool:
    """Does torch as installed leave AVX512 unused on this processor?"""
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def start(script: str, side: str, *words: str) -> subprocess.Popen[str]:
    """Start `script --worker side words`, which answers each line it reads with one of JSON."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if side == "torch-avx2":
        environment["MKL_ENABLE_INSTRUCTIONS"] = "AVX2"
    if side == "torch-avx512":
        environment["LD_PRELOAD"] = as_by_intel()
    pipe = subprocess.PIPE
    command = [sys.executable, script, "--worker", side, *words]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def ask(process: subprocess.Popen[str]) -> list:
    """One turn of one side."""
    time.sleep(_PAUSE)
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def as_by_intel() -> str:
    """A library to preload, by which MKL takes any processor for one by Intel."""
    folder = Path(tempfile.mkdtemp())
    (folder / "by_intel.c").write_text(_BY_INTEL)
    library = folder / "by_intel.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "by_intel.c")], check=True
    )
    return str(library)
