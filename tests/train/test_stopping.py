"""SIGTERM and Ctrl-C at any moment end in a saved checkpoint; SIGKILL costs at most some steps."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folders import assert_same_run, result

import llm.train.supervised
from llm.data.specs import PackedSpec
from llm.generate.engine import Engine
from llm.hub.checkpoints import Checkpoints, checkpoint_folder
from llm.train.compiled import Compiled
from llm.train.experiment import ExperimentSpec, SamplesSpec
from llm.train.run import run
from llm.train.stopping import StopRequestedError, StopSignal

KILLS = int(os.environ.get("LERNAEAN_KILLS", "3"))


def signal_in(monkeypatch, owner, name: str, number: int, call: int = 1) -> None:
    """Send ourselves a signal when `owner.name` is called for the `call`-th time."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.fixture(scope="module")
def spec(experiment) -> ExperimentSpec:
    samples = SamplesSpec(every=4, max_new_tokens=4, prompts=["x"])
    return experiment(trainer={"steps": 8}, samples=samples)


@pytest.fixture(scope="module")
def unbroken(spec: ExperimentSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(spec, folder)
    return folder


@pytest.mark.parametrize(
    ("moment", "owner", "name", "call", "step"),
    [
        ("while the data is prepared", PackedSpec, "build", 1, 0),
        ("while the first evaluation begins", llm.train.supervised, "evaluate", 1, 0),
        ("while the step is compiled", Compiled, "compile", 2, 0),
        ("in a later evaluation", llm.train.supervised, "evaluate", 2, 4),
        ("while sampling", Engine, "generate", 1, 4),
        ("while saving", Checkpoints, "save", 1, 4),
    ],
)
def test_a_stop_at_any_moment_saves_and_resumes(
    moment, owner, name, call, step, spec, unbroken: Path, tmp_path: Path, monkeypatch
) -> None:
    signal_in(monkeypatch, owner, name, signal.SIGTERM, call)
    outcome = run(spec, tmp_path / "broken")
    assert outcome.status == "stopped", moment
    assert result(tmp_path / "broken")["status"] == "stopped"
    saved = int(checkpoint_folder(tmp_path / "broken").name)
    assert saved == outcome.step and step <= saved <= step + 1
    monkeypatch.undo()
    run(spec.replace(resume="true"), tmp_path / "broken")
    assert_same_run(unbroken, tmp_path / "broken")


def test_a_long_compilation_is_left_behind() -> None:
    with StopSignal() as stop:
        started = time.monotonic()

        def compile_for_long() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

        with pytest.raises(StopRequestedError):
            stop.wait_for(compile_for_long)
        assert time.monotonic() - started < 30 and stop.left_behind


def test_errors_of_a_compilation_arrive() -> None:
    with StopSignal() as stop, pytest.raises(ZeroDivisionError):
        stop.wait_for(lambda: 1 / 0)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


# One process per segment, as a cluster that kills and restarts a job sees it.
MAIN = Path(__file__).parents[2] / "launch" / "main.py"


def command(tiny: Path, folder: Path) -> list[str]:
    words = [
        "resume=true", f"hydra.run.dir={folder}", "debug=fast", "tracker.mode=disabled",
        "data.source=text", f"data.path={tiny / 'corpus'}", f"data.cache_dir={tiny / 'cache'}",
        "data.tokenizer.vocab_size=300", "data.seq_len=32", "data.eval_fraction=0.1",
        f"trainer.steps={max(300, 30 * KILLS)}", "eval.every=100", "checkpoint.every=50",
        "samples.every=150",
        f"hardware.compilation_cache={tiny / 'xla'}", "hardware.peak_tflops=0.1",
        "hardware.micro_batch=2", "data.workers=1",
    ]  # fmt: skip
    return [sys.executable, str(MAIN), *words]


def start(tiny: Path, folder: Path) -> subprocess.Popen:
    """Standard error goes to a file beside the run folder."""
    with said_by(folder).open("a") as file:
        return subprocess.Popen(command(tiny, folder), stdout=subprocess.DEVNULL, stderr=file)


def said_by(folder: Path) -> Path:
    return folder.with_suffix(".stderr")


def steps_done(folder: Path) -> int:
    """Step of the last whole line of metrics.jsonl."""
    if not (folder / "metrics.jsonl").exists():
        return -1
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else -1


def test_kills_at_random_moments(tiny: Path, tmp_path: Path) -> None:
    broken, said = tmp_path / "broken", said_by(tmp_path / "broken")
    rng = random.Random(KILLS)
    for kill in range(KILLS):
        number = signal.SIGKILL if kill % 3 == 1 else signal.SIGTERM
        before, words = steps_done(broken), said.stat().st_size if said.exists() else 0
        process = start(tiny, broken)
        if kill % 2:  # some seconds after the start: importing, restoring, compiling
            time.sleep(rng.uniform(0, 5))
        else:  # some steps on: training, evaluating, saving, sampling
            target = before + rng.randint(1, 20)
            while process.poll() is None and steps_done(broken) < target:
                time.sleep(0.01)
        assert process.poll() is None, said.read_text()  # it was still at work
        process.send_signal(number)
        code = process.wait()
        # Before the job begins (Hydra composes, nothing was said) Python ends as it always does.
        early = code == -signal.SIGTERM and said.stat().st_size == words
        assert code == (0 if number == signal.SIGTERM else -number) or early, said.read_text()
        if code == 0:
            assert result(broken)["status"] == "stopped"
    processes = [start(tiny, folder) for folder in (broken, tmp_path / "unbroken")]
    assert [process.wait() for process in processes] == [0, 0], said.read_text()
    assert_same_run(tmp_path / "unbroken", broken)


def test_a_second_signal_quits_at_once(tiny: Path, tmp_path: Path) -> None:
    process = start(tiny, tmp_path / "run")
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGSTOP)  # so that both signals are there before it goes on
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=120) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "Second signal" in said_by(tmp_path / "run").read_text()
