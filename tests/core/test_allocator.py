"""What is freed is kept for the next array."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, statistics
from llm.core.allocator import keep_freed_memory
from llm.core.hardware import HardwareSpec
from llm.core.machine import claim

claim(HardwareSpec(device="cpu", compilation_cache=None))
assert keep_freed_memory()

import jax, jax.numpy as jnp

@jax.jit
def program(x):  # temporary arrays of 16 MiB
    return (x @ x @ x).sum()

x = jnp.ones((2048, 2048))
pages = []
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(pages[10:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_program_finds_the_pages_of_its_last_runs() -> None:
    words = [sys.executable, "-c", SCRIPT]
    answer = subprocess.run(words, check=True, capture_output=True, text=True)
    # Of thousands; jax 0.12 by itself comes to that after some runs, older ones never do.
    assert float(answer.stdout) < 100
