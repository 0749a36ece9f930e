"""Rewards run in a process of their own: no function can hold up or end a run."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from own_rewards import example, judge, own

from llm.data.tasks.registry import make
from llm.train.grpo.rewards import Failure, Rewards
from llm.train.stopping import StopRequestedError

pytestmark = pytest.mark.usefixtures("reward_folder")


def test_a_function_that_hangs(said):
    rewards = own("process", "obeys", timeout=0.5)
    before = judge(rewards, "fine").by_name["process"]
    begin = time.monotonic()
    scores = judge(rewards, "fine", "hang", "(2)", "hang deep", "(3)")
    assert time.monotonic() - begin < 30
    np.testing.assert_array_equal(scores.by_name["obeys"], [1, math.nan, 2, math.nan, 3])
    reason = "took longer than 0.5 s"
    assert scores.failures == [Failure("obeys", 1, reason), Failure("obeys", 3, reason)]
    assert scores.by_name["process"].tolist() == [before[0]] * 5
    assert judge(rewards, "fine").by_name["process"] != before
    assert len(said) == 2


def test_a_stop_does_not_wait_for_a_function_that_hangs():
    wanted: list[bool] = []
    rewards = Rewards(["mine/own.py:obeys"], [], 60.0, stop=lambda: bool(wanted))
    threading.Timer(0.5, wanted.append, [True]).start()
    begin = time.monotonic()
    with pytest.raises(StopRequestedError):
        judge(rewards, "fine", "hang")
    assert 0.3 < time.monotonic() - begin < 30
    rewards.close()


def test_what_a_hanging_function_started_ends_too():
    rewards = own("obeys", timeout=0.3)
    seconds = f"1000.{os.getpid()}"
    rewards(["hang outside", "fine"], [example(seconds)] * 2)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert seconds.encode() not in b"".join(commands)


def test_a_function_that_ends_the_process():
    scores = judge(own("obeys"), "exit", "fine", "crash", "signals", "exit")
    np.testing.assert_array_equal(scores.total, [math.nan, 1, math.nan, 1, math.nan])
    assert [(failure.index, failure.reason) for failure in scores.failures] == [
        (0, "ended its process (status 3)"),
        (2, "ended its process (SIGSEGV)"),
        (4, "ended its process (status 3)"),
    ]


def test_a_process_that_was_ended_in_between_is_started_anew():
    rewards = own("process")
    pid = int(judge(rewards, "a").total[0])
    os.kill(pid, signal.SIGKILL)
    while rewards._processes[0].alive():  # its threads end one by one
        time.sleep(0.01)
    scores = judge(rewards, "a", "b")
    assert scores.failures == []
    assert pid not in scores.total
    rewards.close()
    rewards.close()
    assert not is_running(int(scores.total[0]))


def test_an_interrupt_does_not_mix_up_answers():
    rewards = own("obeys")

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        judge(rewards, "(7)", "hang", "(8)")
    signal.signal(signal.SIGALRM, before)
    assert judge(rewards, "(1)", "(2)").total.tolist() == [1, 2]


PARENT = """
import signal, sys, threading, time
# A test run in the background ignores Ctrl-C, and its children would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
from llm.train.grpo.example import Example
from llm.train.grpo.rewards import Rewards

rewards = Rewards(["mine/own.py:process", "mine/own.py:obeys"], [], 100)
told = Example((), "1000", {})
print(int(rewards(["fine"], [told]).by_name["process"][0]), flush=True)
try:
    rewards([sys.argv[1]], [told])
except KeyboardInterrupt:
    print("stopped", flush=True)  # and leave without closing
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("completion", ["hang", "hang deep"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_process_ends_with_its_parent(reward_folder, request, completion, how):
    """No main guard is needed in a script; and one deep in C code ends, too."""
    (reward_folder / "run.py").write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, "run.py", completion],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath)},
        start_new_session=True,
    )
    worker = int(process.stdout.readline())
    time.sleep(0.2)
    assert is_running(worker)
    os.killpg(process.pid, how)
    out, err = process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)
    if how == signal.SIGINT:
        assert (out, err, process.returncode) == ("stopped\n", "", 0)


def test_512_completions_take_less_than_50_ms():
    rewards = Rewards(["correct"], [], 10.0)
    tasks = [make("addition", number // 8) for number in range(512)]
    told = [
        example(task.answer, task.question, task="addition", number=number // 8)
        for number, task in enumerate(tasks)
    ]
    completions = [(task.answer, "word " * 100)[n % 2] for n, task in enumerate(tasks)]
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        assert rewards(completions, told).total.tolist() == [1.0, 0.0] * 256
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.05


def test_the_process_starts_quickly(request):
    """In seconds of computing: others may hold up this machine."""
    code = (
        "import llm.train.grpo.reward_process, sys, time\nprint(time.process_time(), *sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=request.config.rootpath,
    )
    seconds, *modules = ran.stdout.split()
    assert {"jax", "numpy", "flax", "datasets"}.isdisjoint(modules)
    assert float(seconds) < 0.5
