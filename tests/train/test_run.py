"""Whole runs: what they leave behind, refuse, compile, and what does not change them."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from run_folders import events, result

from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError
from llm.hub.checkpoints import checkpoint_folder
from llm.hub.sources import find_checkpoint
from llm.train.compiled import Compiled
from llm.train.experiment import CheckpointSpec, EvalSpec, SamplesSpec
from llm.train.optimizer_specs import AdamWSpec
from llm.train.run import run
from llm.train.schedules import WarmupCosineSpec
from llm.train.step import Stepper
from llm.train.step_report import DivergedError


def test_a_run_is_not_written_over(experiment, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*.json*")}
    with pytest.raises(RefusedError, match="holds a run already"):
        run(experiment(), finished)
    with pytest.raises(RefusedError, match=r"seed=1: the run in .* was started with seed=0"):
        run(experiment(seed=1, resume="true"), finished)
    assert {path: path.read_bytes() for path in finished.rglob("*.json*")} == before


def test_prompts_that_are_too_long_are_refused_before_training(experiment, tmp_path: Path) -> None:
    samples = SamplesSpec(every=4, prompts=["self " * 60], max_new_tokens=4)
    with pytest.raises(RefusedError, match=r"do not fit into the 64"):
        run(experiment(samples=samples), tmp_path)
    assert not events(tmp_path)


def test_a_failure_before_training_is_written_down(experiment, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no such file"):
        run(experiment(data={"path": "nowhere"}), tmp_path)
    assert "no such file" in result(tmp_path)["error"]["message"]


def test_divergence_fails_the_run_and_keeps_what_was_good(experiment, tmp_path: Path) -> None:
    spec = experiment(
        trainer={"steps": 40, "grad_clip": None, "optimizer": AdamWSpec(lr=1e30)},
        checkpoint=CheckpointSpec(every=1, keep=100),
    )
    with pytest.raises(DivergedError, match=r"lower trainer\.optimizer\.lr"):
        run(spec, tmp_path)
    assert result(tmp_path)["status"] == "failed"
    last = events(tmp_path)[-1]
    assert last["train/loss"] is None  # not a number, and metrics.jsonl says so in valid JSON
    assert int(checkpoint_folder(tmp_path).name) < last["step"]


def test_twenty_steps_compile_once(experiment, tmp_path: Path, monkeypatch) -> None:
    traces, compilations = [], []
    step, compile_ = Stepper.train_step, Compiled.compile
    monkeypatch.setattr(Stepper, "train_step", lambda self, *a: traces.append(1) or step(self, *a))
    monkeypatch.setattr(
        Compiled, "compile", lambda self, *a: compilations.append(1) or compile_(self, *a)
    )
    run(experiment(trainer={"steps": 20}), tmp_path)
    assert len(traces) == 1
    assert len(compilations) == 2  # the training step and the evaluation


def test_buckets_compile_once_each(experiment, tmp_path: Path, monkeypatch) -> None:
    traces = []
    step = Stepper.train_step
    monkeypatch.setattr(Stepper, "train_step", lambda self, *a: traces.append(1) or step(self, *a))
    spec = experiment(padded=True, trainer={"steps": 20})
    run(spec, tmp_path)
    assert len(traces) <= len(spec.data.row_lengths())


def test_the_folder_explains_itself(experiment, tmp_path: Path) -> None:
    spec = experiment(
        samples=SamplesSpec(every=6, prompts=["def", ""], max_new_tokens=4),
        eval=EvalSpec(every=5),
    )
    outcome = run(spec, tmp_path, overrides=["seed=0"])
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["specs"] == spec.to_json()
    assert record["overrides"] == ["seed=0"]
    assert record["data"]["train"]["documents"] + record["data"]["eval"]["documents"] == 60
    log = events(tmp_path)
    assert [e["step"] for e in log if "eval/loss" in e] == [0, 5, 10, 12]
    assert [e["step"] for e in log if "train/loss" in e] == list(range(1, 13))
    final = result(tmp_path)
    assert final["status"] == "finished" and final["step"] == 12
    assert final["final"]["eval/loss"] == outcome.objective
    assert final["tokens"] == log[-1]["tokens"]
    names = {"perf/tokens_per_second", "perf/mfu", "perf/step_time", "perf/data_wait"}
    raw = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names |= {"perf/memory_gib", "perf/compile_count", "perf/compile_time"}
    assert names <= {k for e in raw for k in e}
    compiled = final["compilations"]
    assert compiled["count"] >= raw[-2]["perf/compile_count"] > 2
    assert 0 < raw[-2]["perf/compile_time"] <= compiled["seconds"] + 1e-3
    assert f"programs compiled | {compiled['count']} in " in (tmp_path / "report.md").read_text()
    assert len(list((tmp_path / "samples").iterdir())) == 2
    assert (tmp_path / "report.md").exists()


def test_a_run_draws_its_curves(finished: Path) -> None:
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "(curves.png)" in (finished / "report.md").read_text()


def test_the_best_checkpoint_is_kept(experiment, tmp_path: Path) -> None:
    # Trained hard at first, then with a rate that spoils it: the best is not among the newest.
    spec = experiment(
        trainer={"steps": 24, "optimizer": AdamWSpec(lr=0.3)},
        checkpoint=CheckpointSpec(every=2, keep=1),
        eval=EvalSpec(every=2),
    )
    run(spec, tmp_path)
    log = {e["step"]: e["eval/loss"] for e in events(tmp_path) if "eval/loss" in e}
    saved = {s: loss for s, loss in log.items() if s > 0}  # there is no checkpoint of step 0
    best = min(saved, key=saved.get)
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()}
    assert kept == {best, 24}


def test_no_held_out_documents(experiment, tmp_path: Path) -> None:
    run(experiment(data={"eval_fraction": 0.0}), tmp_path)
    assert not [e for e in events(tmp_path) if "eval/loss" in e]
    assert result(tmp_path)["status"] == "finished"


def test_sharded_run_equals_one_device(experiment, finished: Path, tmp_path: Path) -> None:
    one = experiment()
    four = experiment(hardware=one.hardware.replace(fsdp=2, tensor=2))
    run(four, tmp_path / "four")
    for a, b in zip(events(finished), events(tmp_path / "four"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    # ... and a run may go on with another number of devices.
    grown = one.replace(trainer=one.trainer.replace(steps=14), resume="true")
    assert run(grown, tmp_path / "four").step == 14


def test_a_trace_of_some_steps(experiment, finished: Path, tmp_path: Path) -> None:
    run(experiment(profile=True), tmp_path)
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    with gzip.open(trace) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert any("train_step" in name for name in names)
    assert result(tmp_path)["ledger"]["profile"] > 0
    for a, b in zip(events(tmp_path), events(finished), strict=True):
        assert a == b  # looking changes nothing


def test_a_run_too_short_for_a_trace_says_so(experiment, tmp_path: Path, said) -> None:
    short = {"steps": 2, "schedule": WarmupCosineSpec(warmup_steps=1)}
    run(experiment(profile=True, trainer=short), tmp_path)
    assert said == ["profile=true: the run ended before step 3, where a trace begins."]


def test_find_checkpoint(finished: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError, match="last: no run"):
        find_checkpoint("last")
    shutil.copytree(finished, tmp_path / "outputs" / "day" / "run")
    assert find_checkpoint("last").name == "12"
    assert find_checkpoint("last:pretrain") == find_checkpoint("last")
    with pytest.raises(RefusedError, match="of trainer sft"):
        find_checkpoint("last:sft")


def test_hardware_does_not_change_what_is_computed(
    experiment, finished: Path, tmp_path: Path
) -> None:
    plain = experiment()
    other = HardwareSpec(
        device="cpu", remat="block", micro_batch=1, loss_chunk=7, peak_tflops=0.1,
        compilation_cache=plain.hardware.compilation_cache,
    )  # fmt: skip
    run(experiment(hardware=other), tmp_path)
    for a, b in zip(events(finished), events(tmp_path), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("name", ["a[b]", "a*", "a?b", "a\\b"])
def test_a_folder_below_which_checkpoints_are_lost_is_refused(
    name: str, experiment, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match="cannot be read again"):
        run(experiment(), tmp_path / name)
    assert not (tmp_path / name).exists()
