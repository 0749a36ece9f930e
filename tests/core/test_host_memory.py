"""The memory that a process may use, on made-up machines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.core.host_memory import host_memory

BUILT_IN = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V1 = "sys/fs/cgroup/memory"
V1_NAME = "memory.limit_in_bytes"


def machine(root: Path, groups: str, limits: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": groups, **limits}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"sys/fs/cgroup/memory.max": "3000000\n"}, 3_000_000),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "max\n"}, BUILT_IN),
        ("0::/\n", {"sys/fs/cgroup/memory.max": f"{BUILT_IN * 2}\n"}, BUILT_IN),
        # A job may be held to more than the group around it.
        (
            "0::/slurm/job/task\n",
            {
                "sys/fs/cgroup/slurm/job/task/memory.max": "max\n",
                "sys/fs/cgroup/slurm/job/memory.max": "5000000\n",
                "sys/fs/cgroup/slurm/memory.max": "4000000\n",
            },
            4_000_000,
        ),
        (
            "9:cpu,cpuacct:/a\n4:memory:/docker/1a2b\n0::/\n",
            {f"{V1}/docker/1a2b/{V1_NAME}": "2000000\n", f"{V1}/{V1_NAME}": str(2**63 - 4096)},
            2_000_000,
        ),
        # In a container the path is that outside of it.
        ("4:memory:/docker/1a2b\n", {f"{V1}/{V1_NAME}": "2000000\n"}, 2_000_000),
        ("", {}, BUILT_IN),
    ],
)
def test_the_least_limit_counts(tmp_path, groups: str, limits: dict, expected: int) -> None:
    assert host_memory(machine(tmp_path, groups, limits)) == expected


def test_without_control_groups_it_is_what_is_built_in(tmp_path) -> None:
    assert host_memory(tmp_path) == BUILT_IN


@pytest.mark.skipif(sys.platform != "linux", reason="no other system passes a peak on")
def test_a_peak_is_not_that_of_the_process_that_started_this_one() -> None:
    look = "from llm.core.host_memory import peak_memory; print(peak_memory())"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {look!r}], check=True)"
    large = f"bytearray(b'x') * 2**29; {look}; sys.stdout.flush(); {start}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {large}"], capture_output=True, text=True, check=True
    )
    parent, child = map(int, done.stdout.split())
    assert child < 2**28 < 2**29 < parent
