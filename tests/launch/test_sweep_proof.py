"""A sweep of twelve points, two of which fail, killed in the middle of one, and continued.

Everything is real but the W&B server, which stands in this process.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wandb_stand_in import StandIn, stand_in

from llm.report.json_files import read_json
from llm.report.metrics_file import read_metrics

MAIN = Path(__file__).parents[2] / "launch" / "main.py"
RATES = ("0.1", "1e30", "0.2", "0.3", "0.4", "0.5")  # by the second the loss is not a number
STEPS = 3
KILLED = 5  # the point, from 0, of which one step was done


def test_a_sweep_survives_failing_points_and_a_kill(tiny_words, tmp_path: Path) -> None:
    words = [*tiny_words[:-1], "model.n_heads=2", "hardware=cpu", "plan=off", "eval.every=9"]
    words += ["trainer/optimizer=optax", "trainer.optimizer.optimizer=sgd", "checkpoint.every=1"]
    words += ["trainer.grad_clip=null", f"trainer.steps={STEPS}"]
    swept = [f"trainer.optimizer.lr={','.join(RATES)}", "seed=0,1", "hydra.sweep.dir=sweep"]
    sweep = tmp_path / "sweep"
    with stand_in() as server:
        first = _start(server, tmp_path, "-m", *words, *swept)
        while not list(sweep.glob(f"{KILLED}-*/checkpoints/1")):
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.kill()
        first.communicate()
        (killed,) = sweep.glob(f"{KILLED}-*")
        assert not (killed / "result.json").exists()
        second = _start(server, tmp_path, "resume=sweep")
        shown, said = second.communicate(timeout=300)
    assert second.returncode == 1, said
    assert "10 finished, 2 failed" in shown
    assert said.count("is finished already.") == KILLED - 2
    report = (sweep / "report.md").read_text()
    assert "**12 points: 10 finished, 2 failed**" in report
    for seed in (0, 1):
        assert f"| lr=1e+30, seed={seed} | failed | 2 | DivergedError: train/loss is nan" in report

    assert not server.unknown
    left = dict(server.runs)
    for rate in RATES:
        for seed in (0, 1):
            name = f"seed={seed},trainer.optimizer.lr={float(rate):g}"
            (folder,) = (path for path in sweep.iterdir() if path.name.endswith(f"-{name}"))
            status = read_json(folder / "result.json")["status"]
            seen = left.pop(read_json(folder / "run.json")["tracker_id"])
            assert (seen.name, seen.group, seen.config["seed"]) == (name, "sweep", seed)
            assert seen.config["trainer"]["optimizer"]["lr"] == float(rate)
            assert (seen.exit_code, status) == (
                (1, "failed") if rate == "1e30" else (0, "finished")
            )
            assert _losses(seen.history) == _losses(read_metrics(folder / "metrics.jsonl"))
            done = range(1, 3 if rate == "1e30" else STEPS + 1)
            assert seen.steps_of("train/loss") == [*done]
    assert not left
    (gone_on,) = read_json(killed / "run.json")["resumes"]
    assert gone_on["step"] >= 1


def _losses(events: Iterable[Mapping[str, Any]]) -> list[float]:
    """Those that are numbers: metrics.jsonl has null for what is none, W&B says NaN."""
    return [loss for e in events if math.isfinite(loss := e.get("train/loss") or math.nan)]


def _start(server: StandIn, where: Path, *words: str) -> subprocess.Popen[str]:
    others = {k: v for k, v in os.environ.items() if not k.startswith(("HYDRA_", "WANDB_"))}
    settings = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", **server.environment}
    return subprocess.Popen(
        [sys.executable, str(MAIN), *words], cwd=where, env={**others, **settings},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
