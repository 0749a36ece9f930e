"""A run that was stopped, was killed or failed goes on bit for bit."""

import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from run_folders import assert_same_run, result

from llm.core.spec import RefusedError
from llm.data.loader import Loader
from llm.hub.checkpoints import Checkpoints, checkpoint_folder
from llm.report.run_report import RunReport
from llm.train.run import run
from llm.train.stopping import StopSignal


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch):
    """Ask for a stop once the loader has given out so many batches."""

    def arrange(batches: int) -> None:
        signals: list[StopSignal] = []
        enter, following = StopSignal.__enter__, Loader.__next__

        def remember(self):
            signals.append(self)
            return enter(self)

        def count(self):
            batch = following(self)
            if self.cursor()["next_index"] == batches:
                signals[-1].request()
            return batch

        monkeypatch.setattr(StopSignal, "__enter__", remember)
        monkeypatch.setattr(Loader, "__next__", count)

    yield arrange


@pytest.mark.parametrize(
    ("name", "padded", "changes"),
    [
        ("padded", True, {}),
        ("accumulated", False, {"hardware": {"micro_batch": 2}}),
        ("workers and average", False, {"data": {"workers": 2}, "trainer": {"ema_decay": 0.9}}),
    ],
)
def test_resumed_equals_unbroken(
    name, padded, changes, experiment, tmp_path: Path, stop_after, monkeypatch
) -> None:
    hardware = experiment().hardware.replace(**changes.pop("hardware", {}))
    # 60 small documents: twelve steps of four rows go through more than one epoch when padded.
    spec = experiment(padded, hardware=hardware, **changes)
    assert run(spec, tmp_path / "unbroken").status == "finished"
    with monkeypatch.context():
        stop_after(6)
        outcome = run(spec, tmp_path / "broken")
    assert (outcome.status, outcome.step) == ("stopped", 6)
    assert result(tmp_path / "broken")["status"] == "stopped"
    monkeypatch.undo()
    assert run(spec.replace(resume="true"), tmp_path / "broken").status == "finished"
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_a_killed_run_goes_on_from_its_newest_checkpoint(
    experiment, finished: Path, tmp_path: Path, monkeypatch
) -> None:
    spec = experiment()

    class Killed(BaseException):
        pass

    following = Loader.__next__

    def die(self):
        if self.cursor()["next_index"] == 7:
            raise Killed
        return following(self)

    monkeypatch.setattr(Loader, "__next__", die)
    with pytest.raises(Killed):
        run(spec, tmp_path / "broken")
    assert result(tmp_path / "broken")["status"] == "failed"
    monkeypatch.undo()
    # The thread that writes checkpoints outlives this kill, as it would not in reality.
    while list((tmp_path / "broken" / "checkpoints").rglob("*-tmp")):
        time.sleep(0.01)
    # Half a line, as a kill in the middle of a write leaves it.
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "tok')
    run(spec.replace(resume="true"), tmp_path / "broken")
    assert_same_run(finished, tmp_path / "broken")


def test_an_unreadable_checkpoint_is_passed_over(
    experiment, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "broken")
    newest = tmp_path / "broken" / "checkpoints" / "12"
    for file in (newest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"broken")
    run(experiment(resume="true"), tmp_path / "broken")
    assert_same_run(finished, tmp_path / "broken")


def test_if_no_checkpoint_fits_none_is_touched(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    template = {"params": {"w": jax.ShapeDtypeStruct((3,), np.float32)}}
    with pytest.raises(RefusedError, match=r"none of 2 checkpoints can be read"):
        checkpoints.restore_newest(template)
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before


def test_a_crash_outside_the_step_saves_first(experiment, tmp_path: Path, monkeypatch) -> None:
    following = Loader.__next__

    def fail(self):
        if self.cursor()["next_index"] == 6:
            raise OSError("disk gone")
        return following(self)

    monkeypatch.setattr(Loader, "__next__", fail)
    with pytest.raises(OSError, match="disk gone"):
        run(experiment(), tmp_path)
    record = result(tmp_path)
    assert record["status"] == "failed" and record["error"]["message"] == "disk gone"
    assert checkpoint_folder(tmp_path).name == "6"


def test_a_crash_in_an_evaluation_saves_state_and_cursor_of_one_step(
    experiment, finished: Path, tmp_path: Path, monkeypatch
) -> None:
    spec = experiment()
    log = RunReport.log

    def fail(self, step, tokens, metrics):
        if step == 8 and "eval/loss" in metrics:
            raise OSError("no space left")
        log(self, step, tokens, metrics)

    monkeypatch.setattr(RunReport, "log", fail)
    with pytest.raises(OSError, match="no space left"):
        run(spec, tmp_path / "broken")
    monkeypatch.undo()
    assert checkpoint_folder(tmp_path / "broken").name == "8"
    run(spec.replace(resume="true"), tmp_path / "broken")
    assert_same_run(finished, tmp_path / "broken")
