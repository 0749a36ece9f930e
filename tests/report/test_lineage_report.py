"""A run, and the runs it comes from."""

import json
from pathlib import Path

import pytest

from llm.report.lineage import lineage
from llm.report.lineage_report import ancestry
from llm.report.report import write_report


def stage(folder: Path, trainer: str, parent: dict | None, steps: int, **metrics: float) -> Path:
    folder.mkdir()
    run = {"title": trainer, "specs": {"trainer": {"name": trainer}}, "parent": parent}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    lines = [
        {"step": s, "tokens": 10 * s, "train/loss": 3.0 / s, **metrics} for s in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text('{"status": "finished", "ledger": {"train": 65.0}}')
    return folder


def test_a_chain_of_three(tmp_path: Path) -> None:
    """The second took its weights from the middle of the first."""
    first = stage(tmp_path / "a", "pretrain", None, 30, **{"eval/loss": 2.5})
    parent = {"run": str(first), "checkpoint": f"{first}/checkpoints/20", "step": 20}
    second = stage(tmp_path / "b", "sft", parent, 10, **{"eval/exact_match": 0.25})
    parent = {"run": str(second), "checkpoint": f"{second}/checkpoints/10", "step": 10}
    third = stage(tmp_path / "c", "grpo", parent, 5, **{"reward/mean": 0.5})
    assert [(s.trainer, s.until, s.tokens) for s in ancestry(third)] == [
        ("pretrain", 20, 200), ("sft", 10, 100), ("grpo", None, 50),
    ]  # fmt: skip
    text = write_report(third).read_text()
    lines = text[text.index("## Lineage") :].splitlines()
    assert lines[4] == f"| tokenizer | `{first}/tokenizer.json` |  |  | 2 tokens |"
    assert lines[5] == f"| pretrain | `{first}`, taken at step 20 | 200 | 1:05 | eval/loss 2.5000 |"
    assert lines[7] == f"| grpo | `{third}` | 50 | 1:05 | reward/mean 0.5000 |"
    assert (third / "lineage.png").stat().st_size > 10_000


def test_a_run_from_elsewhere_and_one_whose_parent_is_gone(tmp_path: Path) -> None:
    hub = stage(tmp_path / "a", "sft", {"source": "hf:org/name"}, 3)
    assert "| from | `hf:org/name` |" in write_report(hub).read_text()
    gone = stage(tmp_path / "b", "sft", {"run": str(tmp_path / "gone"), "step": 3}, 3)
    assert f"| from | `{tmp_path}/gone` |" in write_report(gone).read_text()
    assert not (gone / "lineage.png").exists()


def test_a_run_from_nothing_has_no_lineage(tmp_path: Path) -> None:
    assert "## Lineage" not in write_report(stage(tmp_path / "a", "pretrain", None, 3)).read_text()


def test_a_run_that_descends_from_itself_ends(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    stage(folder, "sft", {"run": str(folder), "step": 1}, 3)
    assert len(ancestry(folder)) == 1


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_runs_that_descend_from_each_other_end(tmp_path: Path, names: str, log) -> None:
    for name, parent in zip(names, names[1:] + names[0], strict=True):
        stage(tmp_path / name, "sft", {"run": f"{tmp_path}/{name}/../{parent}"}, 1)
    stages = lineage(tmp_path / "a")
    assert "".join(one.folder.name for one in stages) == names[::-1]
    assert stages[0].parents == () and all(one.parents for one in stages[1:])
    assert f"WARNING {stages[0].folder}: its parent " in log[0] and "descends from it" in log[0]
    assert len(log) == 1


def test_a_run_that_two_have_for_their_parent_is_no_circle(tmp_path: Path, log) -> None:
    first = stage(tmp_path / "a", "pretrain", None, 1)
    second = stage(tmp_path / "b", "sft", {"run": str(first)}, 1)
    run = json.loads((second / "run.json").read_text())
    third = stage(tmp_path / "c", "grpo", {"run": str(second)}, 1)
    (third / "run.json").write_text(
        json.dumps({**run, "parent": {"run": str(second)}, "tokenizer": {"run": str(first)}})
    )
    assert [one.folder for one in lineage(third)] == [first, second, third]
    assert lineage(third)[-1].parents == (first, second) and not log
