"""launch/report.py: which folders it reports on, and what its words mean."""

import json
import sys
from pathlib import Path

import pytest

from launch import report
from llm.core.spec import RefusedError


@pytest.mark.parametrize("result", [{"kind": "evaluation"}, {"status": "finished", "quality": {}}])
def test_the_report_of_another_program_is_left_alone(tmp_path: Path, result: dict) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "report.md").write_text("figures")
    with pytest.raises(RefusedError, match="of no training run; what made it has left its report"):
        report.report(report.ReportSpec(folder=str(tmp_path)))
    assert (tmp_path / "report.md").read_text() == "figures"


@pytest.mark.parametrize(
    ("words", "means"),
    [
        (["a b=c"], ["folder=a b=c"]),
        (["--cfg", "job", "x", "follow=true"], ["--cfg", "job", "folder=x", "follow=true"]),
        (["folder=x", "--cfg", "job"], ["folder=x", "--cfg", "job"]),
    ],
)
def test_a_bare_word_is_the_folder(monkeypatch, words: list[str], means: list[str]) -> None:
    seen: list[str] = []
    monkeypatch.setattr(sys, "argv", ["report.py", *words])
    monkeypatch.setattr(report, "main", lambda: seen.extend(sys.argv[1:]))
    report.program()
    assert [word.replace('"', "") for word in seen] == means
