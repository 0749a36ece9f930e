"""The real W&B client against a stand-in server: what arrives, and what a bad server cannot do."""

import json
import math
import os
import subprocess
import sys
import threading
import time

import pytest
from wandb_stand_in import StandIn, stand_in

from llm.report import wandb_service, wandb_tracker
from llm.report.json_files import write_json
from llm.report.metrics_file import read_metrics
from llm.report.samples import Sample
from llm.report.specs import TrackerSpec
from llm.report.wandb_resume import last_step_on_disk


@pytest.fixture
def server(monkeypatch):
    """A server to which this process is logged in."""
    import wandb

    with stand_in() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        wandb.teardown()  # it reads the environment once
        yield server
        server.answers.set()
        wandb.teardown()


def train(report, steps):
    for step in steps:
        report.log(step, 10 * step, {"train/loss": abs(9 - step), "perf/mfu": step / 100})


def sync(server: StandIn, folder, *words) -> None:
    """`wandb sync`, as a user types it."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, words)],
        env=os.environ | server.environment, cwd=folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_everything_arrives(make_report, server, tmp_path):
    checkpoint, parent = tmp_path / "run" / "checkpoints" / "2", tmp_path / "parent"
    for folder in (checkpoint, parent / "checkpoints" / "7"):
        folder.mkdir(parents=True)
        (folder / "weights").write_text("many")
    write_json(parent / "run.json", {"tracker_id": "theparent"})
    lineage = {"run": str(parent), "checkpoint": str(parent / "checkpoints" / "7"), "step": 7}
    config = {"model": {"n_layers": 2}, "data": {"mixture": [{"path": "a"}]}}
    report = make_report(
        config=config,
        lineage={"parent": lineage},
        tracker=TrackerSpec(mode="online", group="g", job_type="sft", tags=["t"], alerts=True),
    )
    train(report, (1, 2))
    report.samples(2, 20, [Sample("once", "upon", "a time")])
    report.completions(2, [{"prompt": "1+1", "completion": "2", "total": 1.0, "math": None}])
    report.log(2, 20, {"eval/accuracy": 0.5})
    report.log(3, 30, {"eval/accuracy": 0.25})
    report.checkpoint(checkpoint, "best", {"step": 2, "score": 0.5})
    report.finish("finished")

    (run,) = server.runs.values()
    assert not server.unknown
    assert (run.name, run.group, run.job_type, run.tags) == ("pretrain gpt", "g", "sft", ["t"])
    assert (run.config["model"], run.config["data"]) == (config["model"], config["data"])
    assert run.config["lineage"]["parent"] == lineage
    assert [(row["_step"], row["tokens"]) for row in run.history] == [(1, 10), (2, 20), (3, 30)]
    assert run.summary["train/loss"] == {"min": 7, "last": 7}
    assert run.summary["eval/accuracy"] == {"max": 0.5, "last": 0.25}
    assert run.summary["perf/mfu"] == {"mean": 0.015, "last": 0.02}
    assert run.exit_code == 0
    tables = {name.split("_")[0]: data for name, data in run.files.items() if "/table/" in name}
    assert json.loads(tables["media/table/samples"]) == {
        "columns": ["step", "tokens", "prompt", "completion", "reference"],
        "data": [[2, 20, "once", "upon", "a time"]],
    }
    assert json.loads(tables["media/table/completions"])["data"] == [[2, "1+1", "2", 1.0, None]]
    by_name = {artifact.name: artifact for artifact in server.artifacts}
    best = by_name[f"checkpoint-{run.id}"]
    assert (best.type, best.creator, best.committed) == ("model", run.id, True)
    assert (best.metadata, "best" in best.aliases) == ({"step": 2, "score": 0.5}, True)
    assert best.manifest["contents"]["weights"]["ref"] == (checkpoint / "weights").as_uri()
    assert not best.contents  # nothing was uploaded
    assert run.used == [by_name["checkpoint-theparent"].id]
    (alert,) = server.alerts
    assert (alert["title"], alert["severity"]) == ("pretrain gpt finished", "INFO")


def test_a_checkpoint_is_one_version_whoever_mentions_it(make_report, server, tmp_path):
    parent = make_report("parent", mode="online")
    checkpoint = tmp_path / "parent" / "checkpoints" / "7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("many")
    write_json(tmp_path / "parent" / "run.json", {"tracker_id": parent.tracker_id})
    parent.checkpoint(checkpoint, "best", {"step": 7})
    parent.finish("finished")
    lineage = {"run": str(tmp_path / "parent"), "checkpoint": str(checkpoint)}
    child = make_report("child", mode="online", lineage={"parent": lineage})
    child.finish("finished")
    (artifact,) = server.artifacts
    assert artifact.creator == parent.tracker_id
    assert server.runs[child.tracker_id].used == [artifact.id]


def test_divergence_is_an_alert(make_report, server):
    report = make_report(tracker=TrackerSpec(mode="online", alerts=True))
    report.log(1, 10, {"train/loss": math.nan})
    report.finish("failed", error=RuntimeError("train/loss is nan"))
    (alert,) = server.alerts
    assert (alert["title"], alert["severity"]) == ("pretrain gpt diverged", "ERROR")
    assert "step 1" in alert["text"] and "train/loss is nan" in alert["text"]
    assert next(iter(server.runs.values())).exit_code == 1


def test_a_run_that_nobody_finished_does_not_swallow_the_next(make_report, server):
    left_open = make_report("a", mode="online", title="a")
    train(left_open, (1, 2))
    assert server.until(lambda: len(server.runs) == 1)
    second = make_report("b", mode="online", title="b")
    train(second, (1, 2, 3))
    second.finish("finished")
    train(left_open, (3, 4))
    left_open.finish("failed", error="late")
    runs = {run.name: run for run in server.runs.values()}
    assert runs["a"].steps_of("train/loss") == [1, 2, 3, 4]
    assert runs["b"].steps_of("train/loss") == [1, 2, 3]
    assert (runs["a"].exit_code, runs["b"].exit_code) == (1, 0)


def test_an_online_run_goes_on_where_it_was(make_report, server):
    first = make_report(mode="online")
    train(first, range(1, 8))
    first.finish("stopped")
    changes = {"tracker_id": first.tracker_id}
    unseen = make_report(start_step=5, **changes)  # W&B off: it misses steps 8 and 9
    train(unseen, range(6, 10))
    unseen.finish("stopped")
    second = make_report(mode="online", start_step=9, **changes)
    train(second, range(10, 13))
    second.finish("finished")
    (run,) = server.runs.values()
    assert run.steps_of("train/loss") == list(range(1, 13))
    assert [row["tokens"] for row in run.history] == [10 * step for step in range(1, 13)]
    assert run.summary["train/loss"] == {"min": 0, "last": 3}
    assert run.summary["perf/mfu"]["mean"] == pytest.approx(0.065)


def test_offline_parts_sync_into_one_run(make_report, server):
    # Part one is ahead of the checkpoint; in part two W&B is off, as if its rows had been lost.
    parts = [("offline", 0, 7), ("disabled", 4, 9), ("offline", 9, 12)]
    tracker_id = None
    for mode, start, end in parts:
        report = make_report(mode=mode, start_step=start, tracker_id=tracker_id)
        tracker_id = report.tracker_id
        if start == 9:  # was still to be done where part two stopped
            report.log(9, 90, {"eval/loss": 0.5})
        train(report, range(start + 1, end + 1))
        report.finish("finished" if end == 12 else "stopped")
        time.sleep(1.1 if mode == "offline" else 0)  # W&B names folders by the second
    sync(server, report.folder, report.folder / "wandb")
    (run,) = server.runs.values()
    assert run.steps_of("train/loss") == list(range(1, 13))
    assert run.steps_of("eval/loss") == [9]
    assert run.summary["train/loss"] == {"min": 0, "last": 3}
    assert [row["tokens"] for row in run.history] == [10 * step for step in range(1, 13)]
    assert (run.exit_code, server.unknown) == (0, set())


def hang(server):
    server.answers.clear()


def break_down(server):
    server.broken = True


def slow_down(server):
    server.delay = 0.1


@pytest.fixture
def hurried(monkeypatch):
    """W&B gives up sooner than users would like."""
    monkeypatch.setattr(wandb_tracker, "_INIT_SECONDS", 2.0)
    monkeypatch.setattr(wandb_tracker, "_FINISH_SECONDS", 8.0)


@pytest.mark.parametrize("trouble", [slow_down, break_down, hang, StandIn.go])
def test_trouble_in_mid_run_loses_nothing_on_disk(make_report, server, hurried, trouble):
    report = make_report(mode="online")
    train(report, range(1, 4))
    assert server.until(lambda: report._tracker.url is not None)
    trouble(server)
    train(report, range(4, 8))
    if trouble in (slow_down, StandIn.go):  # the others would take it longer
        report.samples(7, 70, [Sample("once", "upon")])
    report.finish("finished")
    assert [event["step"] for event in read_metrics(report.folder / "metrics.jsonl")] == [
        *range(1, 8)
    ]
    assert json.loads((report.folder / "result.json").read_text())["status"] == "finished"
    assert last_step_on_disk(report.folder, report.tracker_id) == 7
    if trouble is StandIn.go:
        with stand_in() as back:
            back.runs |= server.runs  # what it had got
            sync(
                back,
                report.folder,
                *report._tracker.sync_hint().partition("wandb sync ")[2].split(),
            )
            (run,) = back.runs.values()
            assert run.steps_of("train/loss") == list(range(1, 8))
            assert (run.steps_of("samples"), run.exit_code) == ([7], 0)
    if trouble is slow_down:
        assert server.runs[report.tracker_id].steps_of("train/loss") == list(range(1, 8))
        assert server.runs[report.tracker_id].steps_of("samples") == [7]


@pytest.mark.parametrize("trouble", [break_down, hang])
def test_a_server_that_does_not_let_a_run_begin(make_report, server, hurried, log, trouble):
    trouble(server)
    report = make_report(mode="online")
    train(report, range(1, 4))
    report.finish("finished")
    assert last_step_on_disk(report.folder, report.tracker_id) == 3
    (said,) = [line for line in log if "W&B" in line]
    assert "W&B: offline (online failed" in said and "wandb sync" in said


def test_a_hung_server_costs_a_step_next_to_nothing(make_report, server, hurried):
    """In seconds of computing, of its thread and process too: what it takes away from training."""
    report = make_report(mode="online")
    train(report, (1,))
    assert server.until(lambda: report._tracker.url is not None)
    hang(server)
    thread = next(t for t in threading.enumerate() if t.name == "wandb")
    service = wandb_service._process(sys.modules["wandb"])
    clocks = time.CLOCK_THREAD_CPUTIME_ID, time.pthread_getcpuclockid(thread.ident)
    clocks += (~service.pid << 3 | 2,)  # of a process, as clock_getcpuclockid makes it
    before = [time.clock_gettime(clock) for clock in clocks]
    train(report, range(2, 302))
    time.sleep(2)  # for W&B to take what is queued
    spent = [time.clock_gettime(clock) - then for clock, then in zip(clocks, before, strict=True)]
    assert sum(spent) / 300 < 0.004  # seconds; it takes 0.001, on a machine with much else to do
    assert os.getpriority(os.PRIO_PROCESS, service.pid) >= 10  # and that gives way
    report.finish("finished")
    assert last_step_on_disk(report.folder, report.tracker_id) == 301
