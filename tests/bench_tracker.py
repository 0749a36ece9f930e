"""What a W&B server that hangs costs a step; run by hand, not a test.

    python tests/bench_tracker.py

The same run of the default GPT on the CPU, with W&B disabled and with a server that accepts
whatever it is sent and, once the run has begun, answers nothing. Whole runs take turns. Step times
are those of metrics.jsonl, wall clock; only steps after the server fell silent count, and as many
of the others.
Where other work shares the machine, whole runs differ by more than what is looked for: the median
over rounds says most.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wandb_stand_in import StandIn, stand_in

from llm.report.metrics_file import read_metrics

STEPS, COUNTED, ROUNDS = 130, 100, 6
ROOT = Path(__file__).parent.parent


def words(folder: Path, cache: Path, mode: str) -> list[str]:
    """The command line of a run."""
    return [
        "hardware=cpu", "data.max_documents=300", "data.tokenizer.vocab_size=1024",
        f"trainer.steps={STEPS}", "trainer.schedule.warmup_steps=5",
        "eval.batches=1", "samples.every=null", f"data.cache_dir={cache}",
        f"hardware.compilation_cache={cache}/xla", f"tracker.mode={mode}",
        f"hydra.run.dir={folder}",
    ]  # fmt: skip


def step_times(folder: Path, cache: Path, server: StandIn | None) -> list[float]:
    """Seconds of each of a run's last steps."""
    others = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    command = [sys.executable, str(ROOT / "launch" / "main.py")]
    command += words(folder, cache, "online" if server else "disabled")
    with (folder.parent / f"{folder.name}.txt").open("w") as log:
        run = subprocess.Popen(
            command, env=others | (server.environment if server else {}), stdout=log, stderr=log
        )
        silent = _fall_silent(server, folder) if server else 0.0
        if run.wait():
            raise SystemExit(Path(log.name).read_text())
    events = [e for e in read_metrics(folder / "metrics.jsonl") if "perf/step_time" in e]
    counted = events[-COUNTED:]
    if counted[0]["time"] < silent:
        raise SystemExit(f"the server answered until step {counted[0]['step']}: too few steps")
    return [event["perf/step_time"] for event in counted]


def _fall_silent(server: StandIn, folder: Path) -> float:
    """Answer nothing from the run's first step until its last; returns since when."""
    if not server.until(lambda: bool(server.runs) and _steps(folder) > 0, seconds=300):
        raise SystemExit("the run did not begin")
    server.answers.clear()
    silent = time.time()
    while _steps(folder) < STEPS:
        time.sleep(0.5)
    server.answers.set()
    return silent


def _steps(folder: Path) -> int:
    return max((event["step"] for event in read_metrics(folder / "metrics.jsonl")), default=0)


def main() -> None:
    """Print medians, lowest tenths and their ratios, of each round and of all."""
    found: dict[str, list[float]] = {"disabled": [], "hung": []}
    ratios = []
    with tempfile.TemporaryDirectory() as place:
        for turn in range(ROUNDS):
            of_turn = {}
            for name in found if turn % 2 else reversed(found):
                folder, cache = Path(place) / f"{name}{turn}", Path(place) / "cache"
                if name == "hung":
                    with stand_in() as server:
                        of_turn[name] = step_times(folder, cache, server)
                else:
                    of_turn[name] = step_times(folder, cache, None)
                found[name] += of_turn[name]
            _show(f"round {turn + 1}", of_turn)
            medians = {name: statistics.median(times) for name, times in of_turn.items()}
            ratios.append(medians["hung"] / medians["disabled"])
    _show("all", found)
    sys.stdout.write(
        f"median over rounds of the ratio of medians: {statistics.median(ratios):.4f} x\n"
    )


def _show(what: str, times: dict[str, list[float]]) -> None:
    measures = {
        "median": statistics.median,
        "lowest tenth": lambda x: statistics.quantiles(x, n=10)[0],
    }
    for name, measure in measures.items():
        disabled, hung = (1000 * measure(times[mode]) for mode in ("disabled", "hung"))
        sys.stdout.write(
            f"{what}, {name}: {disabled:.2f} ms without W&B, {hung:.2f} ms with a hung one, "
            f"{hung / disabled:.4f} x\n"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
