import json

from llm.report.samples import Sample, write_samples


def read(folder, name):
    return json.loads((folder / name).read_text())


def train(report, steps):
    for step in steps:
        if step % 5 == 0:
            report.log(step, step * 10, {"eval/loss": 9.0 - step / 10})
        report.log(step, step * 10, {"train/loss": 10.0 - step / 10, "train/lr": 0.1})


def test_a_finished_run_leaves_all_files(make_report, capsys, log):
    report = make_report(next_commands=["python launch/generate.py checkpoint=x"])
    train(report, range(1, 21))
    report.samples(20, 200, [Sample("once", "upon a time")])
    report.say("half way there")
    report.finish("finished", ledger={"train": 2.0}, extra={"parameters": 5})
    report.finish("failed")  # too late: changes nothing
    result = read(report.folder, "result.json")
    assert result["status"] == "finished"
    assert (result["step"], result["tokens"], result["parameters"]) == (20, 200, 5)
    assert result["final"]["eval/loss"] == 7.0
    assert result["best"]["eval/loss"] == {"value": 7.0, "step": 20}
    assert result["error"] is None
    assert "upon a time" in (report.folder / "samples/step-000020.txt").read_text()
    assert "half way there" in (report.folder / "run.log").read_text()
    closing = capsys.readouterr().out
    for words in (str(report.folder), "report.md", "curves.png", "checkpoint=x", "eval/loss"):
        assert words in closing
    assert "resume=" not in closing
    assert any("step 20: eval loss 7.0000 (best so far)" in line for line in log)


def test_a_failed_run_says_why_and_how_to_go_on(make_report, capsys):
    report = make_report(next_commands=["chat"])
    train(report, range(1, 3))
    report.finish("failed", error=ValueError("no good"), ledger={})
    assert read(report.folder, "result.json")["error"] == {
        "type": "ValueError",
        "message": "no good",
    }
    closing = capsys.readouterr().out
    assert "ValueError: no good" in closing
    assert f"resume={report.folder}" in closing
    assert "chat" not in closing


def test_resume_carries_best_and_id_on_and_drops_the_old_result(make_report):
    first = make_report()
    train(first, range(1, 13))
    first.finish("stopped")
    second = make_report(start_step=10, start_tokens=100, tracker_id=first.tracker_id)
    assert not (second.folder / "result.json").exists()
    train(second, range(11, 13))
    second.finish("stopped")
    result = read(second.folder, "result.json")
    assert result["best"]["eval/loss"] == {"value": 8.0, "step": 10}
    assert result["start_step"] == 10
    assert second.tracker_id == first.tracker_id
    lines = (second.folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12]


def test_a_report_that_cannot_be_written_does_not_fail_the_run(make_report, monkeypatch, log):
    monkeypatch.setattr("llm.report.report.write_report", lambda folder: 1 / 0)
    report = make_report()
    report.finish("finished")
    assert read(report.folder, "result.json")["status"] == "finished"
    assert any("report.md could not be written" in line for line in log)


def test_samples_that_are_not_text_are_written(tmp_path):
    path = write_samples(tmp_path, 1, 10, [Sample("a", "\ud800 half a pair", "whole")])
    assert "? half a pair" in path.read_text()
