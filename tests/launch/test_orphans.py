"""A worker whose parent was killed saves its job and ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

WORKER = """
import os, signal, sys, time
from pathlib import Path
from launch.orphans import working

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with working(lambda: bool(asked)):
    Path(sys.argv[1], "pid").write_text(str(os.getpid()))
    while not asked:
        time.sleep(0.05)
    time.sleep(1.5)  # a checkpoint is being saved
    Path(sys.argv[1], "saved").write_text(str(len(asked)))
time.sleep(600)  # nobody takes the result
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WORKER, str(tmp_path)])
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
