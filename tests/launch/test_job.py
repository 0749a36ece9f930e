"""A job of a sweep and what it leaves to the next one."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig

from launch import job
from llm.core.spec import RefusedError
from llm.report.json_files import read_json
from llm.train.stopping import StopSignal


class Weights:
    """Stands for what lies on a device."""


def failing(seen: list[weakref.ref[Weights]]) -> None:
    weights = Weights()
    seen.append(weakref.ref(weights))
    try:
        raise KeyError("first")
    except KeyError as error:
        raise ValueError("second") from error


def test_a_failed_job_keeps_no_arrays_alive() -> None:
    """Hydra keeps the exceptions of all jobs until the last has ended."""
    seen: list[weakref.ref[Weights]] = []
    with pytest.raises(ValueError, match="second") as kept:
        failing(seen)
    assert seen[0]() is not None
    job._let_go(kept.value)
    gc.collect()
    assert seen[0]() is None


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch) -> Path:
    """The folder that Hydra has made for a job, when a stop was asked for before it began."""
    stop = StopSignal()
    stop.request()
    monkeypatch.setattr(job, "_signals", [stop])
    folder = tmp_path / "1-seed=1"
    (folder / ".hydra").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("launcher", ["BasicLauncher", "JoblibLauncher"])
def test_after_a_stop_no_job_begins(stopped: Path, launcher: str, monkeypatch) -> None:
    config = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(stopped)),
        launcher=SimpleNamespace(_target_=f"some.{launcher}"),
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: config)
    if launcher == "BasicLauncher":  # the sweep's own process: all of it ends
        with pytest.raises(SystemExit) as end:
            job.run_job(SimpleNamespace())
        assert end.value.code == 0
    else:  # one of several that another process waits for
        assert job.run_job(SimpleNamespace()) is None
    assert not stopped.exists()


def test_a_job_that_failed_before_its_run_began_is_marked_as_failed(tmp_path: Path) -> None:
    job._note(RefusedError("seed=x: no"), tmp_path)
    result = read_json(tmp_path / "result.json")
    assert (result["status"], result["error"]["message"]) == ("failed", "seed=x: no")
    job._note(ValueError("later"), tmp_path)
    assert read_json(tmp_path / "result.json") == result


TELL = """
import signal, subprocess
from launch import job
first = subprocess.Popen(["sleep", "60"])
job._at_terminal = lambda: True
job._tell_children(signal.SIGINT)  # a terminal sends it to all by itself
before = first.poll()
job._tell_children(signal.SIGTERM)
print(before, first.wait() == -signal.SIGTERM)
second = subprocess.Popen(["sleep", "60"])
job._at_terminal = lambda: False
job._tell_children(signal.SIGINT)
print(second.wait() == -signal.SIGTERM)
"""


def test_workers_are_told_to_stop_by_a_signal_that_does_not_reach_them() -> None:
    done = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "True", "True"]


ASK = "from launch.job import _at_terminal; print(_at_terminal())"
AT_TERMINAL = "import pty, sys; pty.spawn([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.parametrize("words", [[ASK], [AT_TERMINAL, ASK]], ids=["without", "at one"])
def test_a_terminal_is_known(words: list[str]) -> None:
    command = [sys.executable, "-c", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, start_new_session=True, check=True
    )
    assert done.stdout.strip() == str(words[0] == AT_TERMINAL)
