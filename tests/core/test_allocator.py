"""What is freed is kept for the next array."""

import platform
import subprocess
import sys

SCRIPT = """
import resource, sys
from llm.core.allocator import keep_freed_memory
from llm.core.hardware import HardwareSpec
from llm.core.machine import claim

claim(HardwareSpec(device="cpu", compilation_cache=None))
if sys.argv[1] == "keep":
    assert keep_freed_memory() == (sys.argv[2] == "glibc")

import jax, jax.numpy as jnp

@jax.jit
def program(x):  # temporary arrays of 16 MiB
    return (x @ x @ x).sum()

x = jnp.ones((2048, 2048))
pages = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(pages[4:]))
"""


def pages_cleared(how: str) -> int:
    """Pages that the system clears for four runs of a program."""
    words = [sys.executable, "-c", SCRIPT, how, platform.libc_ver()[0]]
    answer = subprocess.run(words, check=True, capture_output=True, text=True)
    return int(answer.stdout)


def test_a_program_finds_the_pages_of_its_last_runs() -> None:
    kept, given_back = pages_cleared("keep"), pages_cleared("give back")
    if platform.libc_ver()[0] == "glibc":
        assert kept < given_back / 10
