"""Two real processes as one run, each with one device: what one process computes, in one folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm.train.run import run
from tests.launch.conftest import ROOT

Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts two processes of launch/main.py with the same words, in an empty folder."""
    begun: list[subprocess.Popen[str]] = []

    def start(*words: str) -> list[subprocess.Popen[str]]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        settings = {
            "WANDB_MODE": "disabled",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
        }
        pair = [
            subprocess.Popen(
                [sys.executable, str(ROOT / "launch" / "main.py"), *words],
                cwd=tmp_path,
                env={**os.environ, **settings, "JAX_PROCESS_ID": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        begun.extend(pair)
        return pair

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def ended(pair: list[subprocess.Popen[str]]) -> list[str]:
    """What they wrote to standard error; both must have ended well."""
    said = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    return said


def events(folder: Path) -> list[dict[str, float]]:
    """Of a run, without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "time" and not k.startswith("perf/")}
        for line in lines
    ]


def same(events: list[dict[str, float]], others: list[dict[str, float]]) -> None:
    """Each event has the same names, and numbers that differ by rounding only."""
    assert len(events) == len(others)
    for one, other in zip(events, others, strict=True):
        assert one == pytest.approx(other, rel=2e-5, abs=1e-6)


def test_stopped_and_continued_they_equal_one_process(start, tmp_path, tiny_words, experiment):
    words = [*tiny_words, "trainer.steps=200", "eval.every=40", "hardware.device=cpu"]
    words += ["samples.every=40", "samples.max_new_tokens=4", "checkpoint.every=1000"]
    folder = tmp_path / "pair"
    both = [*words, "hardware.fsdp=2", "resume=true", f"hydra.run.dir={folder}"]

    pair = start(*both)
    deadline = time.monotonic() + 200
    while not (folder / "metrics.jsonl").exists() or len(events(folder)) < 7:
        assert time.monotonic() < deadline and pair[0].poll() is None, pair[0].communicate()
        time.sleep(0.02)
    pair[1].send_signal(signal.SIGTERM)  # one is asked, both stop
    said = ended(pair)
    assert "finished" not in said[1]  # one of them speaks to people
    stopped = json.loads((folder / "result.json").read_text())
    assert stopped["status"] == "stopped"
    steps = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
    assert steps == [stopped["step"]]

    ended(start(*both))
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    run(experiment(*words), tmp_path / "alone")
    same(events(folder), events(tmp_path / "alone"))
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert names <= {path.name for path in folder.iterdir()}


def test_answers_and_rewards_are_those_of_one_process(
    start, tmp_path, trained_run, experiment, monkeypatch
):
    words = [
        "trainer=grpo", f"init_from={trained_run}", "data.path=addition", "data.batch_size=4",
        "data.seq_len=64", "model.n_layers=1", "model.d_model=16", "model.n_heads=2",
        "model.max_seq_len=64", "trainer.steps=2", "trainer.schedule.warmup_steps=1",
        "trainer.group_size=4", "trainer.max_new_tokens=4", "trainer.eval_prompts=4",
        "trainer.rewards=[judge.py:digits]", "trainer.kl_weight=0.1", "samples.every=null",
        "hardware.peak_tflops=0.1", "hardware.device=cpu", "tracker.mode=disabled",
        f"data.cache_dir={trained_run.parent / 'cache'}",
        f"hardware.compilation_cache={trained_run.parent / 'xla'}",
    ]  # fmt: skip
    # Only one of the processes may be asked: another would say something else.
    (tmp_path / "judge.py").write_text(
        "import os\n\n\ndef digits(completion, example):\n"
        "    name = f'asked-{os.getppid()}'\n    open(name, 'w').close()\n"
        "    return len(completion) % 3 / 2\n"
    )
    ended(start(*words, "hardware.data_parallel=2", f"hydra.run.dir={tmp_path / 'pair'}"))
    assert len(list(tmp_path.glob("asked-*"))) == 1
    monkeypatch.chdir(tmp_path)
    run(experiment(*words), tmp_path / "alone")
    found = events(tmp_path / "pair")
    same(found, events(tmp_path / "alone"))
    assert any(event.get("reward/std", 0) > 0 for event in found)


def test_devices_that_no_profile_asks_for_are_refused_by_both(start, tmp_path, tiny_words):
    pair = start(*tiny_words, "hardware.device=cpu")
    said = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [2, 2]
    for text in said:
        assert "say for instance hardware.data_parallel=2" in text
    assert not (tmp_path / "outputs").exists()
