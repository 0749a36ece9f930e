import json
import math

import numpy as np
import pytest

from llm.report.metrics_file import MetricsFile, read_metrics


def run(folder, keep_through, steps):
    """A loop in small: at step k it evaluates, then (elsewhere) saves, then reports training."""
    metrics = MetricsFile(folder, keep_through)
    for step in steps:
        if step % 2 == 0:
            metrics.append(step, 10 * step, {"eval/loss": 9.0 - step})
        if step > (keep_through or 0):
            metrics.append(step, 10 * step, {"train/loss": 10.0 - step, "train/lr": 0.1})
    metrics.close()


def events(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


@pytest.mark.parametrize("crash_at", [4, 5, 7])
def test_resumed_file_equals_the_unbroken_one(tmp_path, crash_at):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run(whole, None, range(9))
    run(broken, None, range(crash_at + 1))
    run(broken, 4, range(4, 9))  # evaluates at step 4 once more
    assert events(broken) == events(whole)


@pytest.mark.parametrize("tail", [b'{"step": 5, "tok', b'{"step": 9}', b"\xff\xfe{", b'{"a": 1}\n'])
def test_half_written_and_foreign_lines_are_cut_off(tmp_path, tail):
    run(tmp_path, None, range(5))
    before = events(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    run(tmp_path, 4, [])
    assert events(tmp_path) == before


def test_whole_last_line_without_its_newline_stays(tmp_path):
    run(tmp_path, None, range(5))
    before = events(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    run(tmp_path, 4, [5])
    assert events(tmp_path)[:-1] == before


def test_fresh_run_keeps_nothing(tmp_path):
    run(tmp_path, None, range(5))
    run(tmp_path, None, range(2))
    assert [event["step"] for event in events(tmp_path)] == [0, 1]


def test_resume_at_step_zero_does_not_repeat_the_first_evaluation(tmp_path):
    run(tmp_path, None, range(3))
    run(tmp_path, 0, range(2))
    assert [list(e)[2] for e in events(tmp_path)] == ["eval/loss", "train/loss"]


def test_numbers_that_are_not_finite_are_null_and_the_file_is_strict_json(tmp_path):
    metrics = MetricsFile(tmp_path, None)
    values = {"a/nan": math.nan, "a/inf": np.float32("inf"), "a/np": np.float32(0.5), "a/int": 3}
    metrics.append(np.int64(1), np.int32(5), values)
    metrics.close()

    def refuse(word):
        raise AssertionError(word)

    line = (tmp_path / "metrics.jsonl").read_text()
    event = json.loads(line, parse_constant=refuse)
    assert event.pop("time") > 1.7e9
    assert event == {
        "step": 1, "tokens": 5, "a/nan": None, "a/inf": None, "a/np": 0.5, "a/int": 3,
    }  # fmt: skip


def test_each_event_is_on_disk_at_once(tmp_path):
    metrics = MetricsFile(tmp_path, None)
    metrics.append(1, 5, {"train/loss": 1.0})
    assert next(read_metrics(metrics.path))["train/loss"] == 1.0
    metrics.close()
