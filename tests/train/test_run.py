"""Whole runs: resume bit for bit, stops, crashes, divergence, one compilation."""

import gzip
import json
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from loguru import logger
from run_folders import assert_same_run, events, result

from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError
from llm.data.loader import Loader
from llm.data.specs import TokenizerSpec
from llm.hub.checkpoints import Checkpoints, checkpoint_folder, read_checkpoint_meta
from llm.hub.sources import find_checkpoint
from llm.models.specs import LlamaSpec
from llm.report.run_report import RunReport
from llm.train.compiled import Compiled
from llm.train.experiment import CheckpointSpec, EvalSpec, SamplesSpec
from llm.train.optimizer_specs import AdamWSpec
from llm.train.origin import check_same
from llm.train.run import run
from llm.train.schedules import WarmupCosineSpec
from llm.train.step import Stepper
from llm.train.step_report import DivergedError
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


def test_init_from_takes_weights_and_starts_anew(
    experiment, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "parent")
    loss = result(tmp_path / "parent")["final"]["eval/loss"]
    spec = experiment(init_from=str(tmp_path / "parent"))
    run(spec, tmp_path / "child")
    first = events(tmp_path / "child")[0]
    assert (first["step"], first["tokens"]) == (0, 0)
    assert first["eval/loss"] == pytest.approx(loss, rel=1e-5)
    parent = json.loads((tmp_path / "child" / "run.json").read_text())["parent"]
    assert parent["step"] == 12 and parent["run"] == str(finished)  # the folder's own name
    # It goes on even when what it began with is gone.
    shutil.rmtree(tmp_path / "parent")
    longer = spec.replace(resume="true", trainer=spec.trainer.replace(steps=14))
    assert run(longer, tmp_path / "child").step == 14


def test_a_damaged_newest_checkpoint_does_not_end_a_run_with_first_weights(
    experiment, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "parent")
    spec = experiment(init_from=str(tmp_path / "parent"))
    run(spec, tmp_path / "child")
    shutil.rmtree(tmp_path / "parent")
    newest = checkpoint_folder(tmp_path / "child")
    (metadata,) = (newest / "meta").glob("metadata")
    metadata.write_text("{")
    longer = spec.replace(resume="true", trainer=spec.trainer.replace(steps=14))
    assert run(longer, tmp_path / "child").step == 14
    assert list((tmp_path / "child" / "unreadable").iterdir())


def test_init_from_brings_its_tokenizer(experiment, finished: Path, tmp_path: Path) -> None:
    other = {"tokenizer": TokenizerSpec(vocab_size=280)}
    child = experiment(data=other, init_from=str(finished))
    run(child, tmp_path / "child")
    saved = [folder / "tokenizer.json" for folder in (finished, tmp_path / "child")]
    assert saved[0].read_text() == saved[1].read_text()
    run(experiment(data=other), tmp_path / "other")
    named = {"tokenizer": TokenizerSpec(path=str(tmp_path / "other"))}
    with pytest.raises(RefusedError, match=r"another tokenizer .* than that of init_from"):
        run(experiment(data=named, init_from=str(finished)), tmp_path / "refused")


def test_weights_that_know_something_are_sampled_first(experiment, tmp_path: Path) -> None:
    samples = SamplesSpec(every=4, prompts=["x"], max_new_tokens=2)
    steps = {"steps": 8}
    run(experiment(samples=samples, trainer=steps), tmp_path / "parent")
    child = experiment(samples=samples, trainer=steps, init_from=str(tmp_path / "parent"))
    run(child, tmp_path / "child")
    for name, expected in (("parent", [4, 8]), ("child", [0, 4, 8])):
        files = (tmp_path / name / "samples").glob("step-*.txt")
        assert sorted(int(path.stem[5:]) for path in files) == expected


def test_init_from_the_first_of_several_that_is_there(
    experiment, finished: Path, tmp_path: Path
) -> None:
    sources = [str(tmp_path / "nowhere"), str(finished)]
    run(experiment(init_from=sources), tmp_path / "child")
    parent = json.loads((tmp_path / "child" / "run.json").read_text())["parent"]
    assert parent["run"] == str(finished)
    with pytest.raises(RefusedError, match="none of 1 sources can be had"):
        run(experiment(init_from=sources[:1]), tmp_path / "other")


def test_init_from_another_shape_is_refused(experiment, finished: Path, tmp_path: Path) -> None:
    wider = experiment().model.replace(d_model=32)
    with pytest.raises(RefusedError, match=r"of another shape; say model.d_model=16$"):
        run(experiment(model=wider, init_from=str(finished)), tmp_path / "child")


def test_the_width_of_a_head_may_be_said_or_follow() -> None:
    model = LlamaSpec(d_model=32, n_heads=4, n_kv_heads=2, vocab_size=64)
    check_same(model, model.replace(head_dim=8), "here")
    check_same(model.replace(head_dim=8), model, "here")
    with pytest.raises(RefusedError, match=r"say model.head_dim=4$"):
        check_same(model, model.replace(head_dim=4), "here")


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


def test_a_run_too_short_for_a_trace_says_so(experiment, tmp_path: Path) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    try:
        short = {"steps": 2, "schedule": WarmupCosineSpec(warmup_steps=1)}
        run(experiment(profile=True, trainer=short), tmp_path)
    finally:
        logger.remove(sink)
    assert lines == ["profile=true: the run ended before step 3, where a trace begins.\n"]


def test_find_checkpoint(finished: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError, match="last: no run"):
        find_checkpoint("last")
    shutil.copytree(finished, tmp_path / "outputs" / "day" / "run")
    assert find_checkpoint("last").name == "12"
    assert find_checkpoint("last:pretrain") == find_checkpoint("last")
    with pytest.raises(RefusedError, match="of trainer sft"):
        find_checkpoint("last:sft")


def test_last_is_what_it_was_when_the_run_began(
    experiment, finished: Path, tmp_path: Path, monkeypatch
) -> None:
    """Also for a run that is killed before its first checkpoint, when others have run since."""
    monkeypatch.chdir(tmp_path)
    parent, child, later = (tmp_path / "outputs" / name for name in ("parent", "child", "later"))
    shutil.copytree(finished, parent)
    first = experiment(init_from="last")
    run(first, child)
    record = json.loads((child / "run.json").read_text())
    meant = "outputs/parent/checkpoints/12"
    assert (record["specs"]["init_from"], record["last"]) == (meant, {"last": meant})
    shutil.rmtree(child / "checkpoints")
    shutil.copytree(finished, later)
    newer = json.loads((later / "run.json").read_text()) | {"created": "9999"}
    (later / "run.json").write_text(json.dumps(newer))
    run(first.replace(resume="true"), child)
    assert find_checkpoint("last").parts[1] == "later"
    assert read_checkpoint_meta(checkpoint_folder(child))["parent"]["checkpoint"] == meant


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
