"""What a run on a CPU really takes of the machine's memory is what its plan says."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from llm.report.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]


def program(name: str, folder: Path, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / name), *words, f"hydra.run.dir={folder}"],
        capture_output=True, text=True, check=False, timeout=600,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},  # a CPU is one device
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of others' heaps nothing is known")
def test_a_run_takes_what_the_plan_says(tmp_path: Path) -> None:
    words = [
        "hardware=cpu", "model=gpt", "data.batch_size=128", "data.seq_len=128", "trainer.steps=8",
        "data.max_documents=200", "data.tokenizer.vocab_size=2048", "model.n_layers=4",
        "trainer.schedule.warmup_steps=1", "eval.every=3", "eval.batches=2", "checkpoint.every=3",
        "samples.every=3", "tracker.mode=disabled", f"data.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    program("plan.py", tmp_path / "plan", words)
    program("main.py", tmp_path / "run", words)
    planned = json.loads((tmp_path / "plan" / "result.json").read_text())["peak_bytes"] / 2**30
    events = read_metrics(tmp_path / "run" / "metrics.jsonl")
    measured = max(event["perf/memory_gib"] for event in events if "perf/memory_gib" in event)
    # A second set of a step's temporary arrays would be as much again as half of the plan.
    assert 0.7 * planned < measured < 1.15 * planned
