import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm.report import wandb_tracker
from llm.report.samples import Sample
from llm.report.specs import TrackerSpec
from llm.report.wandb_tracker import WandbTracker, new_run_id


class FakeRun:
    url = "https://wandb.example/run"

    def __init__(self, folder, log=None, finish=None):
        self.dir = f"{folder}/wandb/run/files"
        self.logged, self.exit_code, self.defined = [], None, {}
        self._log, self._finish = log, finish

    def define_metric(self, name, **settings):
        self.defined[name] = settings

    def log(self, data, step):
        if self._log:
            self._log()
        self.logged.append((step, data))

    def finish(self, exit_code):
        if self._finish:
            self._finish()
        self.exit_code = exit_code


class FakeWandb:
    def __init__(self, run, init=None, logged_in=False):
        self.run, self._init, self._logged_in, self.asked = run, init, logged_in, []
        self.Settings = SimpleNamespace
        self.Table = SimpleNamespace

    def login(self, **settings):
        assert settings == {"prompt": False, "verify": False}
        return self._logged_in

    def init(self, **settings):
        self.asked.append(settings)
        if self._init:
            self._init(settings)
        return self.run


@pytest.fixture
def make(tmp_path):
    def make(wandb, **changes):
        spec = {"mode": "auto", "group": "g", "job_type": "sft", "tags": ["t"], "notes": "n"}
        settings = {"run_id": "id", "title": "a run", "config": {"lr": 0.1}, "load": lambda: wandb}
        return WandbTracker(
            TrackerSpec(**spec | changes.pop("spec", {})), tmp_path, **settings | changes
        )

    return make


@pytest.fixture
def fake_run(tmp_path):
    return FakeRun(tmp_path)


@pytest.mark.parametrize(
    ("spec_mode", "environment", "logged_in", "expected"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("online", "offline", False, "online"),
        ("offline", "online", True, "offline"),
    ],
)
def test_mode(make, fake_run, monkeypatch, log, spec_mode, environment, logged_in, expected):
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    wandb = FakeWandb(fake_run, logged_in=logged_in)
    tracker = make(wandb, spec={"mode": spec_mode})
    tracker.finish(0)
    assert tracker.wait(5)
    asked = wandb.asked[0]
    assert asked["mode"] == expected
    assert (asked["group"], asked["job_type"], asked["tags"]) == ("g", "sft", ["t"])
    assert (asked["name"], asked["notes"], asked["config"]) == ("a run", "n", {"lr": 0.1})
    assert asked["settings"].console == "off"
    assert fake_run.defined["*"] == {"step_metric": "tokens"}
    assert len([line for line in log if f"W&B: {expected}" in line]) == 1


@pytest.mark.parametrize(("mode", "environment"), [("disabled", None), ("auto", "disabled")])
def test_disabled_imports_nothing(make, monkeypatch, mode, environment):
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    tracker = make(None, spec={"mode": mode}, load=lambda: pytest.fail("imported"))
    tracker.log(1, {"tokens": 1})
    tracker.finish(0)
    assert tracker.wait(1)


def test_everything_queued_is_sent_before_the_end(make, fake_run):
    tracker = make(FakeWandb(fake_run))
    for step in range(100):
        tracker.log(step, {"tokens": step})
    tracker.table(100, "samples", ["prompt"], [["a"]])
    tracker.finish(1)
    assert tracker.wait(5)
    assert [step for step, _ in fake_run.logged] == list(range(101))
    assert fake_run.exit_code == 1


def test_events_are_sent_in_lots(make, tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_tracker, "_PAUSE", 0.4)
    sent = []
    run = FakeRun(tmp_path, log=lambda: sent.append(time.monotonic()))
    tracker = make(FakeWandb(run))
    for step in range(20):
        tracker.log(step, {"tokens": step})
        time.sleep(0.05)
    tracker.finish(0)
    assert tracker.wait(5)
    pauses = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert len([pause for pause in pauses if pause > 0.04]) <= 4  # one by one it would be 19


def test_resume_asks_for_the_same_run(make, fake_run):
    wandb = FakeWandb(fake_run)
    tracker = make(wandb, resumed_at=4)
    tracker.finish(0)
    assert tracker.wait(5)
    assert (wandb.asked[0]["id"], wandb.asked[0]["resume"]) == ("id", "allow")


def test_online_that_fails_falls_back_to_offline_in_one_line(make, fake_run, log):
    def init(settings):
        if settings["mode"] == "online":
            raise TimeoutError("no network")

    tracker = make(FakeWandb(fake_run, init=init, logged_in=True))
    tracker.log(1, {"tokens": 1})
    tracker.finish(0)
    assert tracker.wait(5)
    assert tracker.url is None
    assert fake_run.logged == [(1, {"tokens": 1})]
    said = [line for line in log if "W&B" in line]
    assert len(said) == 1
    assert "no network" in said[0]
    assert "wandb sync" in said[0]


@pytest.mark.parametrize("where", ["import", "init", "log", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(1)], ids=["error", "exit"])
def test_whatever_raises_is_one_warning(make, tmp_path, log, where, error):
    def fail(*_):
        raise error

    run = FakeRun(tmp_path, **{where: fail} if where in ("log", "finish") else {})
    wandb = FakeWandb(run, init=fail if where == "init" else None)
    tracker = make(wandb, load=fail if where == "import" else lambda: wandb)
    for step in range(50):
        tracker.log(step, {"tokens": step})
    tracker.finish(0)
    tracker.wait(5)
    assert len([line for line in log if line.startswith("WARNING")]) == 1


@pytest.mark.parametrize("where", ["import", "init", "log"])
def test_whatever_hangs_neither_slows_the_loop_nor_holds_up_the_end(make, tmp_path, log, where):
    release = threading.Event()
    run = FakeRun(tmp_path, log=release.wait if where == "log" else None)
    wandb = FakeWandb(run, init=(lambda _: release.wait()) if where == "init" else None)
    tracker = make(wandb, load=release.wait if where == "import" else lambda: wandb, capacity=1000)
    spent = []
    for step in range(3000):
        start = time.perf_counter()
        tracker.log(step, {"tokens": step, "train/loss": 1.0})
        spent.append(time.perf_counter() - start)
    assert statistics.median(spent) < 0.0005  # 1 % of a 50 ms step; it takes about 0.002 ms
    tracker.finish(0)
    start = time.monotonic()
    assert not tracker.wait(0.2)
    assert time.monotonic() - start < 20
    said = [line for line in log if line.startswith("WARNING")]
    assert len(said) == 2  # events are dropped; W&B does not answer
    assert "metrics.jsonl has them all" in said[0]
    assert "wandb sync" in said[1]
    release.set()
    tracker._thread.join(5)


def test_a_full_queue_drops_the_oldest(make, tmp_path):
    release = threading.Event()
    run = FakeRun(tmp_path)
    wandb = FakeWandb(run, init=lambda _: release.wait())
    tracker = make(wandb, capacity=10)
    for step in range(30):
        tracker.log(step, {"tokens": step})
    release.set()
    tracker.finish(0)
    assert tracker.wait(5)
    assert [step for step, _ in run.logged] == list(range(20, 30))


def test_a_start_up_that_says_nothing_is_mentioned_once(make, fake_run, monkeypatch, log):
    release = threading.Event()
    tracker = make(FakeWandb(fake_run, init=lambda _: release.wait()))
    monkeypatch.setattr("llm.report.wandb_tracker._PATIENCE", 0.0)
    for step in range(3):
        tracker.log(step, {"tokens": step})
    release.set()
    tracker.finish(0)
    assert tracker.wait(5)
    assert len([line for line in log if "has not started" in line]) == 1


def test_run_ids_are_valid_and_differ():
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 8 and i.isalnum() for i in ids)


# The real thing, offline.


def summary(folder):
    """What `wandb leet` finds in a run folder: the state, the summary and the config."""
    wandb = Path(sys.executable).with_name("wandb")
    command = [wandb, "leet", "inspect", "--summary", "--json", folder / "wandb"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two runs, one after the other in one process; the first one fails."""
    folder = tmp_path_factory.mktemp("runs")
    code = f"""
from pathlib import Path
from llm.report.run_report import RunReport
from llm.report import wandb_tracker
from llm.report.samples import Sample
from llm.report.specs import TrackerSpec
for name, status, loss in (("a", "failed", 3.0), ("b", "finished", 2.0)):
    folder = Path({str(folder)!r}) / name
    folder.mkdir()
    report = RunReport(
        folder, tracker=TrackerSpec(mode="offline", group="g", job_type="sft", tags=["t"]),
        config={{"name": name}}, lineage={{"parent": "p"}}, title=name, total_steps=3,
    )
    for step in (1, 2, 3):
        report.log(step, 100 * step, {{"train/loss": loss + step % 2, "train/bad": float("nan")}})
    report.samples(3, 300, [Sample("once", "upon")])
    report.finish(status, error=RuntimeError("x") if status == "failed" else None)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=environment, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder, done


def test_offline_runs_lie_in_their_own_folders_and_do_not_mix(two_runs):
    folder, done = two_runs
    for name, low in (("a", 3), ("b", 2)):
        assert len(list((folder / name / "wandb").glob("offline-run-*/*.wandb"))) == 1
        found = summary(folder / name)
        assert found["config"] == {"lineage": {"parent": "p"}, "name": name}
        assert found["summary"]["train/loss"] == {"last": low + 1, "min": low}
        assert found["summary"]["tokens"] == 300
        assert found["tags"] == ["t"]
    assert done.stderr.count("W&B: offline") == 2


def test_a_failed_run_is_marked_failed(two_runs):
    folder, _ = two_runs
    assert [summary(folder / name)["state"] for name in "ab"] == ["failed", "finished"]


def test_nothing_is_staged_outside_the_run_folder(two_runs):
    folder, _ = two_runs
    assert list((folder / "a" / "wandb" / ".staging").iterdir())


def test_stdout_is_left_to_the_closing_panel(two_runs):
    _, done = two_runs
    assert done.stdout.count("wandb leet") == 2
    assert "wandb:" not in done.stdout + done.stderr


def test_in_this_process_too_without_warnings(make_report):
    report = make_report(mode="offline")
    report.log(1, 10, {"train/loss": 1.0})
    report.samples(1, 10, [Sample("once", "upon", "a time")])
    report.finish("finished")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    assert not [w for w in caught if issubclass(w.category, RuntimeWarning)]
    assert summary(report.folder)
