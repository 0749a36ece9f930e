"""What the built-in rewards say."""

import math
import sys
import time

import numpy as np
import pytest
from own_rewards import example

from llm.core.spec import RefusedError
from llm.data.tasks.registry import TASKS, make
from llm.train.grpo import builtin_rewards
from llm.train.grpo.builtin_rewards import correct, last_number
from llm.train.grpo.rewards import Rewards


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
    begin = time.process_time()
    for text in ("1" * 300_000, "1,111" * 60_000, "," * 300_000, "-$." * 100_000, "####" * 9999):
        assert last_number(text, example("42")) == correct(text, example("42")) == 0.0
    assert time.process_time() - begin < 5


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


def test_math_asks_math_verify(reward_folder, monkeypatch):
    (reward_folder / "math_verify.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(reward_folder)
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


def test_math_says_what_to_install(reward_folder, monkeypatch):
    (reward_folder / "math_verify.py").write_text("raise ImportError('there is none')")
    monkeypatch.syspath_prepend(reward_folder)
    with pytest.raises(RefusedError, match=r'rewards=math: .*pip install -e "\.\[math\]"'):
        Rewards(["math"], [], 10.0)
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(RefusedError, match=r'rewards=math: .*pip install -e "\.\[math\]"'):
        builtin_rewards.math("1", example("1"))
