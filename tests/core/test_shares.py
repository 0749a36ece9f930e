"""Processes that divide a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.core.devices import MEMORY_SHARE
from llm.core.shares import gpus_here, share

TAKE = """
import os, sys
from pathlib import Path
from llm.core.shares import take_share
import llm.core.shares
llm.core.shares._PATIENCE = 0
share = take_share(Path(sys.argv[1]), 2, lambda: len(sys.argv) > 2)
if share is None:
    sys.exit("gave up")
again = take_share(Path(sys.argv[1]), 2, lambda: False)
print(share.number, again.number, os.sched_getaffinity(0) == set(share.cpus), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("of", "cpus", "gpus"), [(2, 8, 0), (3, 8, 4), (4, 4, 4), (1, 2, 1)])
def test_enough_for_all_is_divided_without_rest(of: int, cpus: int, gpus: int) -> None:
    parts = [share(i, of, list(range(cpus)), [str(g) for g in range(gpus)]) for i in range(of)]
    assert sorted(c for part in parts for c in part.cpus) == list(range(cpus))
    assert sorted(g for part in parts for g in part.gpus) == [str(g) for g in range(gpus)]
    assert all(part.per_gpu == 1 for part in parts)


def test_too_little_is_shared_with_its_memory() -> None:
    parts = [share(i, 5, [0, 1], ["0", "1"]) for i in range(5)]
    assert [part.gpus for part in parts] == [("0",), ("1",), ("0",), ("1",), ("0",)]
    assert [part.per_gpu for part in parts] == [3, 2, 3, 2, 3]
    assert parts[0].memory_fraction == pytest.approx(MEMORY_SHARE / 3)
    assert [part.cpus for part in parts] == [(0,), (1,), (0,), (1,), (0,)]


def test_gpus_are_those_that_may_be_used() -> None:
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "2, 5"}) == ["2", "5"]
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_processes_have_different_parts_and_a_dead_one_leaves_its_part(tmp_path: Path) -> None:
    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", TAKE, str(tmp_path / "shares"), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    first, second = begin(), begin()
    taken = sorted([line(first), line(second)])
    assert taken == ["0 0 True", "1 1 True"]
    assert begin("stopping").communicate()[1] == "gave up\n"
    third = begin()  # waits
    assert third.stderr is not None
    said = third.stderr.readline()
    assert "Waiting for a part" in said and str(first.pid) in said and str(second.pid) in said
    first.kill()
    first.communicate()
    assert line(third).split()[0] in ("0", "1")
    for process in (second, third):
        process.communicate("")
