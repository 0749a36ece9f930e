"""Two real processes as one run, each with one device: what one process computes, in one folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from llm.train.run import run
from tests.launch.conftest import ROOT

Start = Callable[..., list[subprocess.Popen[str]]]
MAIN = (str(ROOT / "launch" / "main.py"),)
# What each task of a job of submitit does with the configuration of its point of the sweep.
TASK = (
    "-c",
    f"""
import sys
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core import utils
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext
from launch.job import run_job

words = ["hydra.mode=MULTIRUN", "hydra/launcher=submitit_slurm", "hydra.sweep.subdir=0"]
words += ["hydra.sweep.dir=sweep", *sys.argv[1:]]
with initialize_config_dir({str(ROOT / "conf")!r}, version_base="1.3"):
    config = compose("main", words, return_hydra_config=True)
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    folder = "hydra.sweep.dir", "hydra.sweep.subdir"
    print(utils.run_job(run_job, config, *folder, context, False).return_value)
""",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts two processes of a program with the same words, in an empty folder."""
    begun: list[subprocess.Popen[str]] = []

    def start(
        *words: str, program: Sequence[str] = MAIN, second: Sequence[str] = ()
    ) -> list[subprocess.Popen[str]]:
        """`second` are words of the second process alone."""
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
                [sys.executable, *program, *words, *(second if number else ())],
                cwd=tmp_path,
                env={
                    **os.environ,
                    **settings,
                    "JAX_PROCESS_ID": str(number),
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
                },
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
    words = [*tiny_words, "trainer.steps=80", "eval.every=20", "hardware.device=cpu"]
    words += ["samples.every=20", "samples.max_new_tokens=4", "checkpoint.every=1000"]
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


def test_tasks_of_a_job_of_a_sweep_are_one_run(start, tmp_path, tiny_words, experiment) -> None:
    words = [*tiny_words, "model.n_heads=2", "eval.every=1", "hardware.device=cpu"]
    pair = start(*words, "hardware.data_parallel=2", program=TASK)
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    objective = run(experiment(*words), tmp_path / "alone").objective
    assert float(said[0][0].split()[-1]) == pytest.approx(objective, rel=2e-5)
    same(events(tmp_path / "sweep" / "0"), events(tmp_path / "alone"))
    result = json.loads((tmp_path / "sweep" / "0" / "result.json").read_text())
    assert result["status"] == "finished"


@pytest.mark.parametrize("program", [MAIN, TASK], ids=["run", "job"])
def test_what_fits_one_of_them_only_is_refused_by_both(start, tmp_path, tiny_words, program):
    words = [*tiny_words, "model.n_heads=2", "hardware.device=cpu", "hardware.data_parallel=2"]
    pair = start(*words, program=program, second=["hardware.memory_gib=0.3"])
    said = [process.communicate(timeout=300)[1] for process in pair]
    status = 2 if program is MAIN else 1
    assert [process.returncode for process in pair] == [status, status], said
    for text in said:
        assert "this run does not fit" in text and "has 0.3 GiB" in text
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("program", [MAIN, TASK], ids=["run", "job"])
def test_a_folder_that_one_of_them_does_not_see_is_refused_by_both(
    start, tmp_path, tiny_words, program
):
    # Stands for a disk of the first process's own: what it writes is not there for the second.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "there = pathlib.Path.exists\n"
        "if os.environ['JAX_PROCESS_ID'] == '1':\n"
        "    pathlib.Path.exists = lambda p, **k: '.seen-by-all-' not in p.name and there(p, **k)\n"
    )
    words = [*tiny_words, "model.n_heads=2", "hardware.device=cpu", "hardware.data_parallel=2"]
    pair = start(*words, program=program)
    said = [process.communicate(timeout=300)[1] for process in pair]
    status = 2 if program is MAIN else 1
    assert [process.returncode for process in pair] == [status, status], said
    for text in said:
        assert "process 1 does not see" in text and "must be on a disk that all" in text
    assert not list(tmp_path.rglob(".seen-by-all-*"))
