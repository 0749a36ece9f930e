"""Sweeps by the plugins of the extra `sweeps`, for real."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.sweeps


@pytest.mark.parametrize(
    ("words", "n"),
    [
        (["hydra/launcher=joblib", "seed=0,1"], 2),
        (["hydra/launcher=submitit_local", "seed=0,1"], 2),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "seed=choice(0,1,2)"], 3),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
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
