import json

import pytest

from llm.report import report
from llm.report.plots import draw_curves
from llm.report.report import write_report
from llm.report.run_files import write_result, write_run


def metrics(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(lines))


def event(step, **values):
    values = {name.replace("__", "/"): value for name, value in values.items()}
    return json.dumps({"step": step, "tokens": step * 100, "time": 1.79e9 + step, **values}) + "\n"


def test_empty_folder(tmp_path):
    text = write_report(tmp_path).read_text()
    assert "nothing logged yet" in text
    assert not list(tmp_path.glob("*.png"))


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_running_folder_with_a_half_written_line(tmp_path):
    metrics(tmp_path, event(1, train__loss=3.0), event(2, train__loss=None), '{"step": 3, "tr')
    text = write_report(tmp_path).read_text()
    assert "**running** at step 2" in text
    assert "may have been killed" in text  # its last event is long ago
    assert "![" in text
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(("name", "unit"), [("train/loss", "tokens"), ("reward/mean", "steps")])
def test_rewards_are_drawn_against_steps_and_the_rest_against_tokens(
    tmp_path, monkeypatch, name, unit
):
    metrics(tmp_path, *(event(step, **{name: 1 / step}) for step in (1, 2, 3)))
    drawn = {}

    def draw(curves, path, title, axis):
        drawn[axis] = curves[0].at.tolist()
        return draw_curves(curves, path, title, axis)

    monkeypatch.setattr(report, "draw_curves", draw)
    text = write_report(tmp_path).read_text()
    assert f"against {unit}](curves.png)" in text
    assert drawn == {unit: [1, 2, 3] if unit == "steps" else [100, 200, 300]}


def test_failed_folder_says_why(tmp_path):
    metrics(tmp_path, event(1, train__loss=3.0))
    write_result(
        tmp_path, status="failed", step=1, tokens=100, started="2026-01-01T00:00:00+00:00",
        final={}, best={}, ledger={}, error={"type": "ValueError", "message": "two\nlines"},
    )  # fmt: skip
    text = write_report(tmp_path).read_text()
    assert "**failed** at step 1" in text
    assert "> ValueError: two lines" in text


def test_finished_folder(tmp_path):
    write_run(
        tmp_path, title="a | title", specs={},
        overrides=["model=gpt", "data.path=a b", "init_from=last"],
        parent={"checkpoint": "outputs/x/checkpoints/3", "sha256": 64 * "a"},
        devices=["cpu"], parameters=1_234_567,
    )  # fmt: skip
    metrics(
        tmp_path,
        event(0, eval__loss=5.0, eval__bits_per_byte=2.5),
        event(1, train__loss=4.0, perf__tokens_per_second=1000.0),
        event(2, eval__loss=2.0, eval__bits_per_byte=1.0),
        event(3, eval__loss=3.0, eval__bits_per_byte=1.5),
    )
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-000001.txt").write_text("first")
    (tmp_path / "samples" / "step-000002.txt").write_text("between")
    (tmp_path / "samples" / "step-1000000.txt").write_text("last ```` fence \x07")
    write_result(
        tmp_path, status="finished", step=3, tokens=300, started="2026-01-01T00:00:00+00:00",
        final={}, best={}, ledger={"train": 90.0, "eval": 10.0},
    )  # fmt: skip
    text = write_report(tmp_path).read_text()
    for words in (
        "# a | title",
        "5.0000 → 2.0000".replace("2.0000", "3.0000") + " (best 2.0000 at step 2)",
        "| bits per byte | 2.5000 → 1.5000 (best 1.0000 at step 2) |",
        "1,234,567 (1.23M)",
        "| train | 1:30 | 90.0% |",
        "`````text\nlast ```` fence",
        "python launch/main.py model=gpt 'data.path=a b' init_from=outputs/x/checkpoints/3",
        f"resume={tmp_path}",
        "- starts from: `outputs/x/checkpoints/3` (sha256 aaaaaaaaaaaa)",
    ):
        assert words in text
    assert "first" in text
    assert "between" not in text
    assert "\x07" not in text


def test_broken_files_are_left_out(tmp_path):
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "result.json").write_bytes(b"\xff")
    metrics(tmp_path, "[]\n", "nonsense\n", event(1, train__loss="text"))
    assert "**running** at step 1" in write_report(tmp_path).read_text()
