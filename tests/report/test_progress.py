import io
import sys

import pytest
from loguru import logger
from rich.console import Console

from llm.report import progress, terminal
from llm.report.progress import ProgressLine
from llm.report.samples import Sample


@pytest.fixture
def screen(monkeypatch):
    """Replaces the shared console; returns (make it a terminal or not) -> its text."""

    def make(is_terminal):
        text = io.StringIO()
        console = Console(file=text, force_terminal=is_terminal, width=90, highlight=False)
        monkeypatch.setattr(progress, "console", console)
        monkeypatch.setattr(terminal, "console", console)
        return text

    monkeypatch.setattr(terminal, "_configured", [])
    return make


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_plain_lines_come_first_last_and_every_ten_seconds(screen, log):
    screen(is_terminal=False)
    clock = Clock()
    line = ProgressLine("pretrain", total=100, clock=clock)
    for step in range(1, 101):
        clock.now += 0.5
        line.update(step, step * 1000, float("nan") if step < 3 else 2.0)
    line.close()
    assert len(log) == 6  # at 0.5, 10.5, 20.5, 30.5, 40.5 and, the end, 50 seconds
    assert log[0] == "INFO step 1/100  mean loss -  2.00k tok/s  0:50 left\n"
    assert log[-1] == "INFO step 100/100  mean loss 2.000  2.00k tok/s  0:00 left\n"


def test_what_takes_long_between_two_steps_is_told_now_and_then(screen, log):
    screen(is_terminal=False)
    clock = Clock()
    line = ProgressLine("grpo", total=10, clock=clock)
    for second in range(1, 26):
        clock.now += 1
        line.note(f"answers {second}/25")
    line.update(1, 500, 0.25, "reward")  # a step is told although there was a note just before
    line.close()
    assert [entry.split("  ")[0] for entry in log] == [
        "INFO answers 1/25\n", "INFO answers 11/25\n", "INFO answers 21/25\n", "INFO step 1/10",
    ]  # fmt: skip
    assert "mean reward 0.250" in log[-1]


def test_a_run_that_stops_says_its_last_step(screen, log):
    screen(is_terminal=False)
    line = ProgressLine("pretrain", total=100, clock=Clock())
    line.update(1, 10, 2.0)
    line.update(2, 20, 2.0)
    line.close()
    assert [entry.split()[2] for entry in log] == ["1/100", "2/100"]


def test_resume_measures_speed_from_where_it_took_over(screen, log):
    screen(is_terminal=False)
    clock = Clock()
    line = ProgressLine("pretrain", total=100, start_step=50, start_tokens=50_000, clock=clock)
    clock.now = 1.0
    line.update(51, 51_000, 2.0)
    assert "1.00k tok/s  0:49 left" in log[0]


def test_live_line_and_log_lines_above_it(screen):
    text = screen(is_terminal=True)
    terminal.setup_logging()
    line = ProgressLine("pretrain", total=100)
    line.update(10, 1000, 2.5)
    logger.warning("look out")
    line.samples(10, [Sample("def f(", "a):\x07\n" + "more\n" * 50), Sample("x", "y")])
    line.close()
    shown = text.getvalue()
    assert "look out" in shown
    assert "sample at step 10" in shown
    assert "\x07" not in shown
    assert "2.500" in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_library_use_leaves_loguru_as_it_was(screen, monkeypatch, capsys):
    text = screen(is_terminal=True)
    logger.remove()
    monkeypatch.setattr(terminal, "_default_handler", [logger.add(sys.stderr)])
    for turn in ("first", "second"):
        with terminal.logs_above_display():
            logger.info("while live, {}", turn)
        logger.info("after")
    assert "while live, first" in text.getvalue()
    assert "while live, second" in text.getvalue()
    assert "after" not in text.getvalue()
    shown = capsys.readouterr().err
    assert shown.count("after") == 2
    assert "while live" not in shown
