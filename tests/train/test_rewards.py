"""Rewards: what the built-in ones say, and that no function can hold up or end a run."""

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
from loguru import logger

from llm.core.spec import RefusedError
from llm.data.tasks.registry import TASKS, make
from llm.train.grpo import builtin_rewards
from llm.train.grpo.builtin_rewards import correct, last_number
from llm.train.grpo.example import Example
from llm.train.grpo.rewards import Failure, RewardError, Rewards
from llm.train.stopping import StopRequestedError

OWN = """
import os, re, signal, subprocess, sys, time
import numpy as np
from beside import LENGTH

print("what a module prints goes nowhere")
not_a_function = 3


def length(completion, example):
    print("nor does what a function prints")
    return len(completion) / LENGTH


def sometimes(completion, example):
    return None if completion == "none" else float(completion == "good")


def wants_one(completion):
    return 1.0


def process(completion, example):
    return os.getpid()


def obeys(completion, example):
    if completion == "raise":
        raise ValueError("no \\x1b[31m" + "x" * 1000)
    if completion == "leave":
        sys.exit("bye")
    if completion == "hang":
        time.sleep(1000)
    if completion == "hang deep":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if completion == "hang outside":
        subprocess.run(["sleep", example.answer])
    if completion == "exit":
        os._exit(3)
    if completion == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if completion == "signals":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    return eval(completion) if completion.startswith("(") else 1.0


def fails(completion, example):
    return {}[completion] if completion != "none" else None
"""


def example(answer=None, prompt="Say it.", **fields):
    return Example(({"role": "user", "content": prompt},), answer, fields)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current directory, with rewards in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text(OWN)
    (tmp_path / "mine" / "beside.py").write_text("LENGTH = 10")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said():
    lines = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(sink)


def own(*functions, weights=(), timeout=10.0):
    return Rewards([f"mine/own.py:{name}" for name in functions], weights, timeout)


def judge(rewards, *completions):
    return rewards(completions, [example("1000") for _ in completions])


def test_correct_by_the_rule_of_the_task():
    number = next(n for n in range(9) if make("spell", n).answer.islower())
    task = make("spell", number)
    told = example("not looked at", task.question, task="spell", number=number)
    assert correct(f" {task.answer.upper()}. ", told) == 1.0
    assert correct("not looked at", told) == 0.0
    for name in TASKS:
        task = make(name, 3)
        told = example(task.answer, task.question, task=name, number=3)
        assert correct(task.answer, told) == 1.0
        assert correct(task.question, told) == correct("", told) == 0.0


def test_correct_without_a_task():
    assert correct("1,234.", example("1234")) == 1.0
    assert correct("1,234 or 5", example("1234")) == 0.0
    assert correct("1234", example(None)) is None
    # Somebody's own field of that name.
    assert correct("yes", example("yes", task="summarise", number=3)) == 1.0
    assert correct("yes", example("yes", task="addition", number="3")) == 1.0


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (
            "She has 3 * 14 = <<3*14=42>>42 left.\n#### 42",
            ["42", "42.", "It is 42.0.", "**42**", "$42", "6 * 7 = 42", "$\\boxed{42}$", "42.00 m"],
            ["", "none", "42 or 43", "-42", "4.2", "421", "42.5", "4,2", "42,000"],
        ),
        (
            "#### 1,234,567",
            ["1,234,567", "1234567", "is $1,234,567.00.", "1\n1234567"],
            ["1,234,56", "12,34,567", "234,567", "1,234,5678"],
        ),
        ("-5", ["-5", "x = -5.", "\u22125", "-$5", "$-5"], ["5", "3-5", "(2)-5", "- 5"]),
        ("2.50", ["2.5", "$2.500"], ["2.05", "25", "2"]),
        ("0.5", [".5", "is .50"], ["5", "...5", "1.2.5"]),
        ("7 apples", ["7", "I have 7."], ["seven"]),
    ],
)
def test_last_number(answer, right, wrong):
    assert [text for text in right if last_number(text, example(answer)) != 1.0] == []
    assert [text for text in wrong if last_number(text, example(answer)) != 0.0] == []


def test_last_number_needs_one_to_compare_with():
    assert last_number("42", example(None)) is None
    assert last_number("42", example("#### none")) is None


def test_long_completions_are_judged_quickly():
    begin = time.perf_counter()
    for text in ("1" * 300_000, "1,111" * 60_000, "," * 300_000, "-$." * 100_000, "####" * 9999):
        assert last_number(text, example("42")) == correct(text, example("42")) == 0.0
    assert time.perf_counter() - begin < 5


def test_an_answer_in_the_prompt_earns_nothing():
    prompt = "Answer like this: #### 42, that is $\\boxed{42}$. 42"
    told = [example("42", prompt)] * 2
    scores = Rewards(["correct", "last_number"], [], 10.0)(["", "42"], told)
    assert scores.total.tolist() == [0.0, 2.0]
    assert scores.failures == []


STAND_IN = """
def parse(text, parsing_timeout=5):
    assert parsing_timeout is None
    inner = text.strip("$")
    return [inner.replace("0.5", "1/2"), inner] if inner and inner != "?" else []

def verify(gold, target, timeout_seconds=5):
    assert timeout_seconds is None
    return bool(set(gold) & set(target))
"""


def test_math_asks_math_verify(folder, monkeypatch):
    (folder / "math_verify.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(folder)
    rewards = Rewards(["math"], [], 10.0)
    answers = ["1/2", "$1/2$", "He has 3. #### 0.5", "?", None, "1/3"]
    scores = rewards(["$0.5$"] * 6, [example(answer) for answer in answers])
    np.testing.assert_array_equal(scores.total, [1, 1, 1, math.nan, math.nan, 0])
    assert scores.failures == []


def test_what_math_compares_with(monkeypatch):
    asked = []
    module = type(sys)("math_verify")
    module.parse = lambda text, parsing_timeout: asked.append(text) or [text]
    monkeypatch.setitem(sys.modules, "math_verify", module)
    builtin_rewards._formulas.cache_clear()
    answers = [r"2\sqrt{3}", r"so $x = 2$", r"it is \boxed{2}", "3 + 4 = 7\n#### 7", r"\(x\)", " "]
    for answer in answers:
        builtin_rewards._formulas(answer)
    builtin_rewards._formulas.cache_clear()
    assert asked == [r"$2\sqrt{3}$", r"so $x = 2$", r"it is \boxed{2}", "$7$", r"\(x\)", ""]


def test_math_says_what_to_install(folder, monkeypatch):
    (folder / "math_verify.py").write_text("raise ImportError('there is none')")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(RefusedError, match=r'rewards=math: .*pip install -e "\.\[math\]"'):
        Rewards(["math"], [], 10.0)
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(RefusedError, match=r'rewards=math: .*pip install -e "\.\[math\]"'):
        builtin_rewards.math("1", example("1"))


def test_functions_of_files_and_modules(folder, monkeypatch, capfd):
    (folder / "package").mkdir()
    (folder / "package" / "deep.py").write_text(
        "def length(completion, example):\n    return example.fields['n'] == len(completion)\n"
    )
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "found.py").write_text("def half(completion, example): return 0.5\n")
    monkeypatch.syspath_prepend(folder / "elsewhere")
    paths = ["mine/own.py:length", "package.deep:length", "found:half", "correct"]
    rewards = Rewards(paths, [1.0, 10.0, 100.0, 1000.0], 10.0)
    assert rewards.names == ["length", "length#2", "half", "correct"]
    assert rewards.weights == [1, 10, 100, 1000]
    monkeypatch.chdir("/")  # after a change of directory it starts where it was
    rewards.close()
    scores = rewards(["one", "four"], [example("one", n=3), example("five", n=3)])
    assert list(scores.by_name) == rewards.names
    assert scores.by_name["length"].tolist() == [0.3, 0.4]
    assert scores.by_name["length#2"].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(scores.total, [1060.3, 50.4])
    assert capfd.readouterr() == ("", "")


def test_none_does_not_apply(said):
    rewards = own("sometimes", "length", weights=[2.0, -1.0])
    scores = judge(rewards, "good", "none", "bad")
    np.testing.assert_array_equal(scores.by_name["sometimes"], [1, math.nan, 0])
    np.testing.assert_allclose(scores.total, [2 - 0.4, -0.4, -0.3])
    alone = own("sometimes")
    np.testing.assert_array_equal(judge(alone, "none", "good").total, [math.nan, 1])
    assert np.isnan(judge(alone, "none", "none").total).all()
    nothing = alone([], [])
    assert nothing.total.shape == nothing.by_name["sometimes"].shape == (0,)
    assert nothing.total.dtype == nothing.by_name["sometimes"].dtype == np.float64
    assert said == []
    with pytest.raises(ValueError, match="1 completions and 0 examples"):
        alone(["a"], [])


def test_numbers_of_all_kinds():
    texts = ["(True)", "(False)", "(2)", "(-0.1)", "(np.float32(0.5))", "(np.bool_(True))"]
    texts += ["(np.array(3))", "(__import__('fractions').Fraction(1, 4))"]
    scores = judge(own("obeys"), *texts)
    assert scores.failures == []
    assert scores.total.tolist() == [1, 0, 2, -0.1, 0.5, 1, 3, 0.25]


def test_failures_are_no_rewards(said):
    texts = ["fine", "raise", "leave", "(float('nan'))", "(-float('inf'))", "('abc')", "([1.0])"]
    texts += ["(np.array([1.0]))", "(10**400)", "(1j)", "(lambda: 1)", "fine"]
    rewards = own("length", "obeys", weights=[1.0, 0.0])
    scores = judge(rewards, *texts)
    reasons = {failure.index: failure.reason for failure in scores.failures}
    assert list(reasons) == list(range(1, len(texts) - 1))
    assert reasons[1].startswith("raised ValueError: no  [31mxxx")
    assert reasons[1].endswith("x... (own.py, line 29)")
    assert len(reasons[1]) < 260
    assert reasons[2] == "raised SystemExit: bye (own.py, line 31)"
    assert [reasons[n] for n in range(3, 8)] == [
        "returned nan",
        "returned -inf",
        "returned 'abc'",
        "returned [1.0]",
        "returned array([1.])",
    ]
    assert reasons[8].startswith("raised OverflowError")
    assert reasons[9] == "returned 1j"
    assert reasons[10].startswith("returned <function <lambda>")
    failed = [0, *[1] * 10, 0]
    assert np.isnan(scores.total).tolist() == np.isnan(scores.by_name["obeys"]).tolist() == failed
    assert not np.isnan(scores.by_name["length"]).any()
    assert len(said) == 4
    assert said[1].startswith("No reward: obeys raised SystemExit: bye (own.py, line 31); prompt")
    assert said[1].endswith("; prompt: 'Say it.'; completion: 'leave'")
    assert said[3] == "No reward: 7 more"
    again = judge(rewards, *texts)
    np.testing.assert_array_equal(again.total, scores.total)
    assert again.failures[:9] == scores.failures[:9]


def test_long_texts_are_shortened_in_the_log(said):
    prompt, completion = "p" * 5000 + "{}\n", "(0)[" + "c" * 5000
    own("obeys")([completion, "(1)"], [example(prompt=prompt)] * 2)
    (line,) = said
    assert "pp{}\\n'; completion: '(0)[cc" in line
    assert "cc [...] cc" in line
    assert len(line) < 700


def test_a_function_that_hangs(said):
    rewards = own("process", "obeys", timeout=0.5)
    before = judge(rewards, "fine").by_name["process"]
    begin = time.perf_counter()
    scores = judge(rewards, "fine", "hang", "(2)", "hang deep", "(3)")
    assert time.perf_counter() - begin < 5
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
    assert 0.3 < time.monotonic() - begin < 5
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
    time.sleep(0.1)
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


def test_a_reward_that_always_fails_ends_the_run(said):
    rewards = own("obeys", "fails", timeout=0.3)
    message = (
        r"A reward failed wherever it applies: fails raised KeyError: 'fine' \(own.py, line \d+\); "
        r"prompt: 'Say it.'; completion: 'fine'"
    )
    with pytest.raises(RewardError, match=message):
        judge(rewards, "none", "fine", "raise", "fine")
    assert len(said) == 4
    with pytest.raises(RewardError, match=r"obeys took longer than 0.3 s.*completion: 'hang'"):
        judge(rewards, "hang", "hang")
    assert judge(rewards, "none").failures == []


def test_an_example_that_no_reward_can_judge_does_not_end_the_run(said):
    scores = own("fails")(["fine", "raise"], [example("1000")] * 2)
    assert np.isnan(scores.total).all()
    assert len(scores.failures) == len(said) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"rewards=\[\]: expected one or more"),
        (["correct", "correct"], r"rewards=\['correct', 'correct'\]: expected each once"),
        (["corect"], r"rewards=corect: .*correct, last_number, math.*file.py:function or package"),
        (["mine/own.py"], r"rewards=mine/own.py: .*path/to/file.py:function"),
        (["mine/own.py:"], r"rewards=mine/own.py:: .*path/to/file.py:function"),
        (["mine/other.py:f"], r"rewards=mine/other.py:f: no such file: /.*/mine/other.py"),
        (["no.such:f"], r"rewards=no.such:f: importing no.such failed: ModuleNotFound.*'no'"),
        (["mine/own.py:f"], r"rewards=mine/own.py:f: mine/own.py has no function f"),
        (["json:nothing"], r"rewards=json:nothing: json has no function nothing"),
        (["mine/own.py:not_a_function"], r"not_a_function is no function, but of type int"),
        (["mine/own.py:wants_one"], r"it must take two arguments, completion and example"),
        (["broken.py:f"], r"broken.py:f: importing broken.py failed: SyntaxError: .*line 1"),
        (["leaves.py:f"], r"leaves.py:f: importing leaves.py failed: SystemExit: 3"),
        (["missing.py:f"], r"missing.py failed: FileNotFoundError: .*'there.is.none'"),
        (["dies.py:f"], r"rewards=\['dies.py:f'\]: importing them ended its process \(status 5\)"),
    ],
)
def test_what_is_refused(folder, names, message):
    (folder / "broken.py").write_text("def f(:")
    (folder / "leaves.py").write_text("raise SystemExit(3)")
    (folder / "missing.py").write_text("open('there.is.none')")
    (folder / "dies.py").write_text("import os; os._exit(5)")
    with pytest.raises(RefusedError, match=message):
        Rewards(names, [], 10.0)


def test_which_weights_and_times_are_refused():
    with pytest.raises(
        RefusedError, match=r"weights=\[1.0, 2.0\]: expected as many as rewards, 1,"
    ):
        Rewards(["correct"], [1.0, 2.0], 10.0)
    with pytest.raises(RefusedError, match=r"weights=\[nan\]: expected finite"):
        Rewards(["correct"], [math.nan], 10.0)
    for timeout in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RefusedError, match=f"timeout={timeout}: expected a number of seconds"):
            Rewards(["correct"], [], timeout)


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
def test_the_process_ends_with_its_parent(folder, request, completion, how):
    """No main guard is needed in a script; and one deep in C code ends, too."""
    (folder / "run.py").write_text(PARENT)
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
    deadline = time.monotonic() + 10
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
    code = "import llm.train.grpo.reward_process, sys; print(*sys.modules)"
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=request.config.rootpath,
        )
        seconds.append(time.perf_counter() - begin)
        assert {"jax", "numpy", "flax", "datasets"}.isdisjoint(ran.stdout.split())
    assert min(seconds) < 0.5
