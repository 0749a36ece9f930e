"""Which functions are taken as rewards, what they add up to, and what happens when they fail."""

import math

import numpy as np
import pytest
from own_rewards import example, judge, own

from llm.core.spec import RefusedError
from llm.train.grpo.rewards import RewardError, Rewards

pytestmark = pytest.mark.usefixtures("reward_folder")


def test_functions_of_files_and_modules(reward_folder, monkeypatch, capfd):
    (reward_folder / "package").mkdir()
    (reward_folder / "package" / "deep.py").write_text(
        "def length(completion, example):\n    return example.fields['n'] == len(completion)\n"
    )
    (reward_folder / "elsewhere").mkdir()
    (reward_folder / "elsewhere" / "found.py").write_text(
        "def half(completion, example): return 0.5\n"
    )
    monkeypatch.syspath_prepend(reward_folder / "elsewhere")
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
def test_what_is_refused(reward_folder, names, message):
    (reward_folder / "broken.py").write_text("def f(:")
    (reward_folder / "leaves.py").write_text("raise SystemExit(3)")
    (reward_folder / "missing.py").write_text("open('there.is.none')")
    (reward_folder / "dies.py").write_text("import os; os._exit(5)")
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
