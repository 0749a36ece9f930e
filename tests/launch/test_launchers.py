"""Sweeps by launchers and sweepers that extras bring, for real."""

import json
from pathlib import Path

import pytest

KINDS = {
    "joblib": (pytest.mark.sweeps, 2, ["hydra/launcher=joblib", "seed=0,1"]),
    "submitit": (pytest.mark.sweeps, 2, ["hydra/launcher=submitit_local", "seed=0,1"]),
    "ray": (pytest.mark.ray, 2, ["hydra/launcher=ray", "seed=0,1"]),
    "optuna": (
        pytest.mark.sweeps, 3,
        ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "seed=choice(0,1,2)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("n", "words"),
    [pytest.param(*rest, marks=mark, id=kind) for kind, (mark, *rest) in KINDS.items()],
)
def test_each_point_has_its_run_and_all_have_one_report(
    command, tiny_words, tmp_path: Path, words: list[str], n: int
) -> None:
    done = command("-m", *tiny_words, *words, "model.n_heads=2", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert f"{n} finished" in done.stdout
    results = [json.loads(p.read_text()) for p in (tmp_path / "sweep").glob("*/result.json")]
    assert [result["status"] for result in results] == ["finished"] * n
    assert (tmp_path / "sweep" / "report.md").exists()
