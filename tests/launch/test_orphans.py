"""A worker whose parent was killed saves its job and ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from launch.orphans import working

def work(folder):
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    with working(lambda: bool(asked)):
        Path(folder, "pid").write_text(str(os.getpid()))
        while not asked:
            time.sleep(0.05)
        time.sleep(1.5)  # a checkpoint is being saved
        Path(folder, "saved").write_text(str(len(asked)))
    time.sleep(600)  # nobody takes the result

if __name__ == "__main__":
    with working(lambda: False):  # its own parent, a shell maybe, may end
        multiprocessing.get_context("spawn").Process(target=work, args=[sys.argv[1]]).start()
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    (tmp_path / "sweep.py").write_text(SWEEP)
    command = [sys.executable, str(tmp_path / "sweep.py"), str(tmp_path)]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    number = tmp_path / "pid"
    wait_until(lambda: number.exists() and number.read_text() != "")
    worker = Path("/proc", number.read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: not worker.exists() or "Z" in (worker / "stat").read_text().split()[2])
    assert (tmp_path / "saved").read_text() == "1"  # asked once: twice would quit at once


def wait_until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
