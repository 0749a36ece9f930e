"""What is kept of a run's checkpoints, and what is known of them."""

from pathlib import Path

import numpy as np

from llm.hub.checkpoints import Checkpoints


def test_the_best_is_known_and_kept_also_after_a_restart(tmp_path: Path) -> None:
    def save(checkpoints: Checkpoints, step: int, score: float | None) -> None:
        checkpoints.save(step, {"x": np.arange(2)}, {"step": step}, score=score)
        checkpoints.wait()

    first = Checkpoints(tmp_path, keep=1)
    assert first.best() is None and first.newest() is None
    for step, score in ((1, 0.5), (2, 0.1), (3, None), (4, 0.7)):
        save(first, step, score)
    first.close()
    second = Checkpoints(tmp_path, keep=1)
    save(second, 5, 0.6)
    best, newest = second.best(), second.newest()
    assert best is not None and newest is not None
    assert (best.step, best.score, best.folder) == (2, 0.1, tmp_path / "2")
    assert (newest.step, newest.score) == (5, 0.6)
    assert 2 in second.steps() and 5 in second.steps() and 4 not in second.steps()
    second.close()
