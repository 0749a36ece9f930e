"""GRPO runs, as a whole, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from run_folders import assert_same_run, events, result

from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError
from llm.data.specs import PackedSpec, PaddedSpec
from llm.generate.language_model import load
from llm.models.specs import GPTSpec, LoRASpec
from llm.report.specs import TrackerSpec
from llm.train.experiment import CheckpointSpec, EvalSpec, ExperimentSpec, SamplesSpec
from llm.train.grpo.rewards import RewardError
from llm.train.grpo.spec import GRPOSpec
from llm.train.optimizer_specs import AdamWSpec
from llm.train.run import run
from llm.train.stopping import StopSignal

REWARDS = '''
def short(completion, example):
    """The sooner it stops, the better."""
    return -len(completion) / 10

def letters(completion, example):
    return float(sum(c in "aeiou" for c in completion))

def never(completion, example):
    return None

def broken(completion, example):
    raise ValueError("no")

def same(completion, example):
    return 1.0

def by_four(completion, example):
    """Right wherever it applies."""
    return None if int(example.answer) % 4 else 1.0

def often_the_same(completion, example):
    return 1.0 if int(example.answer) % 3 else letters(completion, example)

judged = 0

def slow_in_round_two(completion, example):
    """A batch has 16 answers, and there is no evaluation before."""
    global judged
    judged += 1
    if judged == 17:
        __import__("time").sleep(3)
    return float(judged % 2)
'''


@pytest.fixture
def grpo(tiny: Path, trained_run: Path, tmp_path: Path):
    """Builds the spec of a run on the tiny GPT; keywords replace parts of it."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"for x in {n} = " + "1 " * (n % 5), "answer": str(n)} for n in range(40)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARDS)

    def build(*names: str, padded: bool = False, **changes: Any) -> ExperimentSpec:
        data = {
            "source": "jsonl", "path": str(prompts), "seq_len": 64, "batch_size": 4,
            "eval_fraction": 0.2, "cache_dir": str(tiny / "cache"),
        } | changes.pop("data", {})  # fmt: skip
        trainer = {
            "steps": 6, "optimizer": AdamWSpec(lr=3e-3), "group_size": 4, "max_new_tokens": 8,
            "rewards": [f"{rewards}:{name}" for name in names or ["letters"]], "eval_prompts": 4,
        } | changes.pop("trainer", {})  # fmt: skip
        parts = {
            "name": "tiny",
            "init_from": str(trained_run),
            "model": GPTSpec(max_seq_len=64, n_layers=1, d_model=16, n_heads=2),
            "hardware": HardwareSpec(
                device="cpu", peak_tflops=0.1, compilation_cache=str(tiny / "xla")
            ),
            "eval": EvalSpec(every=3),
            "checkpoint": CheckpointSpec(every=2),
            "samples": SamplesSpec(every=3, prompts=[], max_new_tokens=8),
            "tracker": TrackerSpec(mode="disabled"),
        } | changes
        kind = PaddedSpec if padded else PackedSpec
        return ExperimentSpec(data=kind(**data), trainer=GRPOSpec(**trainer), **parts)

    return build


def steps_of(folder: Path) -> list[dict]:
    return [event for event in events(folder) if "train/loss" in event]


def whole_events(folder: Path) -> list[dict]:
    """With what differs from run to run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_says_what_happened(grpo, tmp_path: Path) -> None:
    run(grpo("letters", "short", trainer={"reward_weights": [1.0, 0.5]}), tmp_path / "run")
    steps = steps_of(tmp_path / "run")
    assert len(steps) == 6
    wanted = {
        "train/loss", "train/grad_norm", "train/lr", "reward/mean", "reward/std", "reward/letters",
        "reward/letters_std", "reward/short", "reward/zero_std_fraction", "policy/kl",
        "policy/entropy", "policy/clip_fraction", "policy/sampler_logprob_gap",
        "completions/length_mean", "completions/length_max", "completions/stopped_fraction",
        "reward/all_right_fraction", "reward/all_wrong_fraction", "reward/mixed_fraction",
    }  # fmt: skip
    for step in steps:
        assert wanted <= step.keys()
        assert step["policy/ratio"] == 1.0 and step["policy/clip_fraction"] == 0.0
        assert 0 <= step["policy/sampler_logprob_gap"] < 1e-4
        whole = step["reward/letters"] + 0.5 * step["reward/short"]
        np.testing.assert_allclose(step["reward/mean"], whole, rtol=1e-9)
        groups = ("all_right", "all_wrong", "mixed")
        assert sum(step[f"reward/{g}_fraction"] for g in groups) == pytest.approx(1)
    ledger = result(tmp_path / "run")["ledger"]
    assert all(ledger[phase] > 0 for phase in ("prefill", "decode", "reward", "train"))
    assert {"eval/accuracy", "eval/reward"} <= result(tmp_path / "run")["final"].keys()
    table = pyarrow.parquet.read_table(tmp_path / "run/samples/completions-000003.parquet")
    rows = table.to_pylist()
    assert len(rows) == 16
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward/letters"] + 0.5 * row["reward/short"])
        assert 1 <= row["tokens"] <= 8
    for group in range(4):
        advantages = [row["advantage"] for row in rows[4 * group : 4 * group + 4]]
        assert sum(advantages) == pytest.approx(0, abs=1e-6)
    page = (tmp_path / "run/samples/completions-000003.md").read_text()
    assert "16 of 16 answers" in page and "for x in" in page
    load(str(tmp_path / "run"))


def test_answers_do_not_depend_on_how_they_are_made(grpo, tmp_path: Path) -> None:
    """Rows or packed groups, all at a time or a few, micro-batches: the same run to rounding."""
    steps, hardware = {"steps": 3}, grpo().hardware
    runs = {
        "packed": grpo(trainer=steps),
        "a row each": grpo(padded=True, trainer=steps),
        "few at a time": grpo(trainer=steps | {"rows_decoded": 4}),
        "micro-batches": grpo(padded=True, trainer=steps, hardware=hardware.replace(micro_batch=3)),
        "four devices": grpo(trainer=steps, hardware=hardware.replace(data_parallel=2, tensor=2)),
    }
    found = {}
    for name, experiment in runs.items():
        run(experiment, tmp_path / name)
        found[name] = steps_of(tmp_path / name)
    for name, steps in found.items():
        for one, other in zip(steps, found["packed"], strict=True):
            for key in ("reward/mean", "completions/length_mean"):
                assert one[key] == pytest.approx(other[key]), (name, key)
            for key in ("train/grad_norm", "policy/entropy"):
                assert one[key] == pytest.approx(other[key], rel=2e-3), (name, key)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 2, "mini_batches": 2, "kl_weight": 0.1, "reference": "ema"},
        {"dynamic_sampling": 2, "overlong_buffer": 4},
    ],
    ids=["plain", "in the middle of a rollout", "dynamic sampling"],
)
def test_resumed_equals_unbroken(grpo, tmp_path: Path, changes: dict) -> None:
    experiment = grpo(trainer=changes, samples=SamplesSpec(every=None))
    run(experiment, tmp_path / "unbroken")
    half = experiment.trainer.replace(steps=3)
    run(experiment.replace(trainer=half), tmp_path / "broken")
    run(experiment.replace(resume="true"), tmp_path / "broken")
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


def test_stopping_is_learned(grpo, tmp_path: Path) -> None:
    """Where stopping early is rewarded, answers get shorter: the stop token is trained."""
    trainer = {"steps": 40, "max_new_tokens": 16, "optimizer": AdamWSpec(lr=1e-2), "group_size": 8}
    run(grpo("short", trainer=trainer, samples=SamplesSpec(every=None)), tmp_path / "run")
    lengths = [step["completions/length_mean"] for step in steps_of(tmp_path / "run")]
    assert np.mean(lengths[-5:]) < 0.6 * np.mean(lengths[:5])
    stopped = [step["completions/stopped_fraction"] for step in steps_of(tmp_path / "run")]
    assert stopped[-1] > 0.9


@pytest.mark.parametrize("reference", ["start", "periodic", "ema"])
def test_the_reference(grpo, tmp_path: Path, reference: str) -> None:
    changes = {"kl_weight": 0.1, "reference": reference, "reference_every": 3}
    run(grpo(trainer=changes, samples=SamplesSpec(every=None)), tmp_path / "run")
    kl = [step["policy/kl"] for step in steps_of(tmp_path / "run")]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[2] > 1e-5
    if reference == "periodic":
        assert kl[3] == pytest.approx(0, abs=1e-6)
    else:
        assert kl[3] > 1e-5


def test_adapters_and_their_base(grpo, tmp_path: Path) -> None:
    changes = {"kl_weight": 0.1, "reference": "base"}
    model = grpo().model.replace(lora=LoRASpec(rank=2))
    run(grpo(trainer=changes, model=model, samples=SamplesSpec(every=None)), tmp_path / "run")
    kl = [step["policy/kl"] for step in steps_of(tmp_path / "run")]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-6
    with pytest.raises(RefusedError, match="reference=base: there is a base only beneath adapters"):
        grpo(trainer=changes)


def test_inner_steps_leave_the_old_policy(grpo, tmp_path: Path) -> None:
    changes = {"epochs": 3, "mini_batches": 2, "optimizer": AdamWSpec(lr=3e-2)}
    run(grpo(trainer=changes, samples=SamplesSpec(every=None)), tmp_path / "run")
    steps = steps_of(tmp_path / "run")
    assert [("reward/mean" in step) for step in steps] == [True] + 5 * [False]
    assert steps[0]["policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert any(step["policy/clip_fraction"] > 0 for step in steps[2:])
    assert all(step["policy/sampler_logprob_gap"] < 1e-4 for step in steps)


def test_groups_without_signal(grpo, tmp_path: Path) -> None:
    run(grpo("same", samples=SamplesSpec(every=None)), tmp_path / "run")
    for step in steps_of(tmp_path / "run"):
        assert step["reward/zero_std_fraction"] == 1 == step["reward/all_right_fraction"]
        assert step["train/loss"] == 0 == step["train/grad_norm"]
        assert step["policy/entropy"] is None  # nothing was trained on
    assert result(tmp_path / "run")["final"]["eval/accuracy"] == 1


def test_dynamic_sampling_refills(grpo, tmp_path: Path) -> None:
    trainer = {"rewards": ["correct"], "dynamic_sampling": 2, "steps": 1}
    run(grpo(trainer=trainer, samples=SamplesSpec(every=None)), tmp_path / "run")
    (step,) = steps_of(tmp_path / "run")
    assert step["reward/zero_std_fraction"] == 1  # of three rounds: it never knows the answer
    cursor = json.loads(next((tmp_path / "run/checkpoints/1").glob("meta/*")).read_text())["cursor"]
    assert cursor["next_prompt"] == 12 and cursor["rollout"] == 1


def test_refills_compile_nothing_new(grpo, tmp_path: Path) -> None:
    trainer = {"dynamic_sampling": 3, "steps": 8}
    run(grpo("often_the_same", trainer=trainer, eval=EvalSpec(every=8)), tmp_path / "run")
    steps = [event for event in whole_events(tmp_path / "run") if "train/loss" in event]
    assert len({step["reward/zero_std_fraction"] for step in steps}) > 2  # more refills or less
    assert len({step["perf/compile_count"] for step in steps}) == 1


def test_answers_that_are_not_judged_are_neither_right_nor_wrong(grpo, tmp_path: Path) -> None:
    spec = grpo("by_four", "letters", trainer={"eval_samples": 2, "eval_prompts": 8})
    run(spec, tmp_path / "run")
    logged = events(tmp_path / "run")
    evaluations = [event for event in logged if "eval/accuracy" in event]
    assert evaluations
    for event in evaluations:
        assert event["eval/accuracy"] == event["eval/pass_at_1"] == event["eval/pass_at_2"] == 1
        assert 0 < event["eval/missing_fraction"] < 1
    steps = steps_of(tmp_path / "run")  # none where it applies to nobody
    assert {step["reward/all_wrong_fraction"] for step in steps} <= {0, None}
    assert 1 in {step["reward/all_right_fraction"] for step in steps} <= {1, None}


def test_what_is_not_judged_at_all_has_no_accuracy(grpo, tmp_path: Path) -> None:
    spec = grpo("never", "letters", trainer={"eval_samples": 2, "steps": 2})
    run(spec, tmp_path / "run")
    evaluations = [event for event in events(tmp_path / "run") if "eval/reward" in event]
    assert evaluations
    for event in evaluations:
        assert event["eval/missing_fraction"] == 1
        assert not {"eval/accuracy", "eval/pass_at_1", "eval/pass_at_2"} & event.keys()


def test_a_step_is_charged_for_its_own_answers(grpo, tmp_path: Path) -> None:
    data, trainer = {"eval_fraction": 0.0}, {"steps": 3}
    run(grpo("slow_in_round_two", data=data, trainer=trainer), tmp_path / "run")
    steps = [event for event in whole_events(tmp_path / "run") if "train/loss" in event]
    waits, times = ([step[f"perf/{name}"] for step in steps] for name in ("data_wait", "step_time"))
    assert waits[1] > 3 > waits[2]
    assert times[1] > 3 > max(times[0], times[2])  # compiling is not part of the first


def test_rewards_that_fail_end_the_run(grpo, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"broken.*ValueError: no"):
        run(grpo("letters", "broken"), tmp_path / "run")
    assert result(tmp_path / "run")["error"]["type"] == "RewardError"
    run(grpo("letters", "never"), tmp_path / "other")
    assert steps_of(tmp_path / "other")[0]["reward/never"] is None
    with pytest.raises(RewardError, match="applies to any of the 16 answers of a rollout"):
        run(grpo("never"), tmp_path / "nothing")


def test_a_stop_does_not_wait_for_the_answers(grpo, tmp_path: Path, monkeypatch) -> None:
    from llm.train.grpo import sampling

    with StopSignal() as stop:
        original = sampling.Engine.generate

        def generate(self, prompts, *arguments, **settings):
            if len(prompts) == 4 and settings["n"] == 4 and len(steps_seen) == 1:
                stop.request()
            steps_seen.append(len(prompts))
            return original(self, prompts, *arguments, **settings)

        steps_seen: list[int] = []
        monkeypatch.setattr(sampling.Engine, "generate", generate)
        outcome = run(grpo(samples=SamplesSpec(every=None)), tmp_path / "run", stop=stop)
    assert outcome.status == "stopped" and outcome.step == 0
    monkeypatch.undo()
    run(grpo(samples=SamplesSpec(every=None), resume="true"), tmp_path / "run")
    run(grpo(samples=SamplesSpec(every=None)), tmp_path / "unbroken")
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "unbroken")


def test_what_cannot_work_is_refused(grpo, tmp_path: Path) -> None:
    for changes, message in [
        ({"data": {"batch_size": 3}, "trainer": {"mini_batches": 2}}, "batch_size=3: must be a mu"),
        ({"trainer": {"max_new_tokens": 64}}, "max_new_tokens=64: must be less than data.seq_len"),
        ({"trainer": {"reward_weights": [1.0, 2.0]}}, "there are 1 rewards"),
        ({"trainer": {"rewards": []}}, "rewards=.*name at least one"),
        ({"trainer": {"overlong_buffer": 9}}, "overlong_buffer=9: larger than"),
        ({"trainer": {"temperature": 0.0}}, "temperature=0.0: expected a number greater than 0"),
    ]:
        with pytest.raises(RefusedError, match=message):
            grpo(**changes)
    with pytest.raises(RefusedError, match="nothing to reward in what random weights say"):
        run(grpo(init_from="scratch"), tmp_path / "a")
    with pytest.raises(RefusedError, match="no prompt is short enough"):
        run(grpo(data={"seq_len": 10}), tmp_path / "b")
