"""launch/chat.py, as people use it: at a terminal (a real one, with Ctrl-C) and through a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
SETTINGS = ["hardware.compilation_cache=null", "max_new_tokens=4", "temperature=0"]


@pytest.fixture
def words(trained_run: Path, tmp_path: Path) -> list[str]:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    return [f"checkpoint={trained_run}", f"template={template}", *SETTINGS]


class Terminal:
    """A program at a terminal: type, and wait for what should appear."""

    def __init__(self, words: list[str], folder: Path, slow: bool) -> None:
        master, slave = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HYDRA_")}
        settings = {"TERM": "xterm", "COLUMNS": "200", "XDG_STATE_HOME": str(folder / "state")}
        settings |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _AT_A_TERMINAL + _SLOW * slow + _RUN, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={**environment, **settings},
            start_new_session=True,
        )
        os.close(slave)
        self.master, self.seen, self.read = master, "", 0

    def appears(self, pattern: str, seconds: float) -> bool:
        """Wait for something that was not there before, and read on behind it."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen[self.read :])):
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            try:
                data = os.read(self.master, 4096) if ready else b""
            except OSError:  # the other side is closed
                data = b""
            if not data:
                return False
            self.seen += data.decode("utf-8", "replace")
        self.read += found.end()
        return True

    def expect(self, pattern: str) -> None:
        assert self.appears(pattern, 120), f"no {pattern!r} in {self.seen[self.read :]!r}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ctrl_c(self, effect: str) -> None:
        """At a prompt, and again: readline does not hear one that comes before it waits."""
        self.expect("> ")
        for _ in range(24):
            self.type("\x03")
            if self.appears(effect, 5):
                return
        raise AssertionError(f"no {effect!r} in {self.seen[self.read :]!r}")

    def ctrl_d(self) -> int:
        """At a prompt, and again, as the terminal may swallow it; returns the exit status."""
        self.expect("> ")
        for _ in range(24):
            self.type("\x04")
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(5)
        raise AssertionError("it still runs")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


# Ctrl-C is meant for those whose terminal it is: what a shell arranges for its jobs. (And not for
# what it starts in the background, as these tests may be.)
_AT_A_TERMINAL = """
import fcntl, runpy, signal, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
# Eight tokens take half a second.
_SLOW = """
from llm.generate.engine import Engine
decode = Engine.decode
def slowly(*args):
    time.sleep(0.5)
    return decode(*args)
Engine.decode = slowly
"""
_RUN = f"""
sys.argv[0] = {str(ROOT / "launch" / "chat.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(words: list[str], slow: bool = False) -> Terminal:
        opened.append(Terminal(words, tmp_path, slow))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_at_a_terminal(terminal: Any, words: list[str], tmp_path: Path) -> None:
    chat = terminal(words)
    chat.expect("/help lists the commands")
    chat.expect("> ")
    chat.type("def x\n")
    chat.expect(r"\[cut: 4 tokens\]")
    chat.ctrl_c("Ctrl-D or /exit leaves")
    chat.type("/nonsense\n")
    chat.expect("/nonsense: no such command; /help lists them")
    chat.type("/temperature hot\n")
    chat.expect("hot: expected a number")
    chat.type("/top_p 2\n")
    chat.expect("top_p=2.0: expected a number at most 1")
    chat.type("/undo now\n")
    chat.expect("expected /undo")
    chat.type("/save\n")
    chat.expect("expected /save FILE")
    chat.type("/system You write Python.\n")
    chat.expect("told that first")
    chat.type("return \\\nself\n")
    chat.expect(r"\[cut: 4 tokens\]")
    chat.type("/retry\n")
    chat.expect(r"\[cut: 4 tokens\]")
    chat.type("/save talk.jsonl\n")
    chat.expect("talk.jsonl has 5 messages")
    chat.type("/save talk.jsonl\n")
    chat.expect("there is such a file")
    lines = (tmp_path / "talk.jsonl").read_text().splitlines()
    contents = [json.loads(line)["content"] for line in lines]
    assert contents[:2] == ["You write Python.", "def x"]
    assert contents[3] == "return \nself"
    chat.type("/undo\n")
    chat.expect("Taken back: return")
    chat.type("/reset\n")
    chat.expect("begins anew")
    chat.type("/load talk.jsonl\n")
    chat.expect("has 5 messages now")
    chat.type("/help\n")
    chat.expect(r"Now: temperature 0, top_p 0.95, max_tokens 4, 4 messages")
    chat.type("for x in self import " * 9 + "\n")
    chat.expect("the model sees 64: .*/reset")
    assert chat.ctrl_d() == 0
    history = tmp_path / "state" / "lernaean" / "chat_history"
    assert history.read_text().splitlines()[:2] == ["def x", "/nonsense"]
    assert history.stat().st_mode & 0o777 == 0o600


def test_lines_are_edited_and_remembered(terminal: Any, words: list[str]) -> None:
    first = terminal(words)
    first.expect("> ")
    first.type("/undo\n")
    first.expect("no question yet")
    first.type("/ex\t\n")
    assert first.process.wait(120) == 0
    second = terminal(words)
    second.expect("> ")
    # Up twice, to before /exit; then to the front of the line and away with its first letter.
    second.type("\x1b[A\x1b[A\x01\x04\n")
    second.expect(r"\[cut: 4 tokens\]")
    second.type("/undo\n")
    second.expect("Taken back: undo")


def test_ctrl_c_stops_the_answer_and_not_the_program(
    terminal: Any, words: list[str], tmp_path: Path
) -> None:
    chat = terminal([*words, "max_new_tokens=60", "temperature=3"], slow=True)
    chat.expect("> ")
    chat.type("x\n")
    chat.expect("x\r\n")
    chat.expect(r"\w")  # the answer has begun
    chat.type("\x03")
    chat.expect(r"\[cut: interrupted\]")
    chat.expect("> ")
    chat.type("/save cut.jsonl\n")
    chat.expect("2 messages")
    answer = json.loads((tmp_path / "cut.jsonl").read_text().splitlines()[1])
    assert answer["role"] == "assistant"
    assert len(answer["content"]) > 0
    chat.type("/max_tokens 4\n")
    chat.type("x\n")
    chat.expect(r"\[cut: ")
    chat.type("/exit\n")
    assert chat.process.wait(120) == 0


def test_through_a_pipe(words: list[str], tmp_path: Path) -> None:
    done = piped(words, "def x\n\n/seed 3\nimport\n/nonsense\nself", tmp_path)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("\n")
    assert len(answers) >= 3
    assert "> " not in done.stdout
    assert "/nonsense: no such command" in done.stderr


def test_refusals(words: list[str], tmp_path: Path) -> None:
    source, template, *settings = words
    for changed, problem in [
        ([source, *settings], "Refused: this model has no chat template"),
        ([source, "template=nowhere", *settings], "Refused: template=nowhere: cannot be read"),
        ([source, template, "top_p=2"], "Refused: top_p=2"),
    ]:
        done = piped(changed, "", tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert problem in done.stderr
        assert "Traceback" not in done.stderr


def piped(words: list[str], text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "chat.py"), *words],
        input=text,
        cwd=folder,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
