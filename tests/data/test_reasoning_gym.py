import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from chat_templates import CHATML

from llm.core.spec import RefusedError
from llm.data.conversations import ChatSettings
from llm.data.specs import PackedSpec, TokenizerSpec
from llm.data.tasks import reasoning_gym
from llm.data.tasks.registry import TASKS, kinds, make, tasks

# The package is not in the environment of most tests: a stand-in with its interface, and kinds that
# have, one each, the faults that were found in its own, shows what is made of them. Tests marked
# `reasoning_gym` look at the package itself.


class Sums:
    def __init__(self, seed, size):
        self.seed, self.size = seed, size

    def __getitem__(self, index):
        assert index < self.size
        a, b = (random.Random(self.seed + index).randrange(10**6) for _ in range(2))
        return {"question": f"What is {a} + {b + 1}?", "answer": str(a + b + 1), "metadata": {}}

    def score_answer(self, answer, entry):
        return 1.0 if int(answer) == int(entry["answer"]) else 0.9


class AnyOrder(Sums):
    def __getitem__(self, index):
        return {"question": f"The letters a, b and c? ({self.seed + index})", "answer": "a b c"}

    def score_answer(self, answer, entry):
        same = sorted(answer.split()) == entry["answer"].split()
        return float(same) or (entry["answer"] in answer) * 0.5


class Noisy(Sums):
    def __getitem__(self, index):
        sys.stdout.write("loud")
        number = str(random.randrange(10**9))  # from the generator that everyone shares
        return {"question": f"Repeat {number}.", "answer": number}


class Patchy(Sums):
    def __getitem__(self, index):
        if index % 3 == 1:
            raise ZeroDivisionError("by chance")
        entry = super().__getitem__(index)
        return {**entry, "answer": ""} if index % 3 == 2 else entry

    def score_answer(self, answer, entry):
        return float(answer == entry["answer"])


class RunsOut(Sums):
    def __getitem__(self, index):
        return super().__getitem__([0, 1, 2, 3, 4][index])


class WithoutAnswer(Sums):
    def __getitem__(self, index):
        return {"question": "Solve the cube.", "answer": None}


class NeedsFiles(Sums):
    def __init__(self, seed, size):
        raise AssertionError("Must specify at least one file")


class Gullible(Sums):
    def score_answer(self, answer, entry):
        return float(bool(answer) == bool(entry["answer"]))


class Strict(Sums):
    def score_answer(self, answer, entry):
        return 0.99


class RunsCode(Sums):
    def score_answer(self, answer, entry):
        return float(eval(answer) == int(entry["answer"]))


STAND_IN = {
    "sums": Sums, "any_order": AnyOrder, "noisy": Noisy, "patchy": Patchy, "runs_out": RunsOut,
    "without_answer": WithoutAnswer, "needs_files": NeedsFiles, "gullible": Gullible,
    "strict": Strict, "runs_code": RunsCode, "word_ladder": Sums,
}  # fmt: skip
FLAWS = {
    "without_answer": "its questions come without an answer",
    "needs_files": r"making a question fails \(AssertionError: Must specify at least one file\)",
    "gullible": "its scorer accepts nonsense",
    "strict": "its scorer refuses the answer that it gives",
    "runs_code": "its scorer may run what a model writes as Python code",
    "word_ladder": "its questions follow Python's hash seed",
}


def forget():
    reasoning_gym._flaw.cache_clear()
    reasoning_gym._dataset.cache_clear()


@pytest.fixture
def stand_in(monkeypatch):
    package, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    package.factory = factory
    factory.DATASETS = {name: (dataset, object) for name, dataset in STAND_IN.items()}
    factory.create_dataset = lambda name, seed, size: STAND_IN[name](seed, size)
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    monkeypatch.setattr(reasoning_gym, "version", lambda: "1.0")
    forget()
    yield
    forget()


def test_only_a_full_score_is_right(stand_in):
    task = make("reasoning_gym/sums", 0)
    assert task.name == "reasoning_gym/sums"
    assert task.accepts(task.answer) and task.accepts(f" {task.answer}\n")
    wrong = str(int(task.answer) + 1)  # scores 0.9; the last two make the scorer fail
    assert not any(task.accepts(text) for text in (wrong, "", " \n", "many", f"{task.answer}!"))

    task = make("reasoning_gym/any_order", 0)
    assert task.accepts("c a b")
    assert not task.accepts("a b c d")


def test_an_item_is_a_function_of_kind_and_number(stand_in):
    numbers = [0, 1, 999, 1000, 1001, 2500, 10**12]
    for name in ("reasoning_gym/sums", "reasoning_gym/noisy"):
        made = [make(name, number) for number in numbers]
        forget()
        random.seed(5)
        assert [make(name, number) for number in reversed(numbers)] == made[::-1]
        assert len({task.question for task in made}) == len(numbers)
    # No item comes twice over the data sets that a kind is made from.
    assert len({make("reasoning_gym/any_order", n).question for n in range(3500)}) == 3500


def test_kinds_neither_print_nor_change_the_random_numbers_of_others(stand_in, capsys):
    random.seed(0)
    expected = random.Random(0).random()
    task = make("reasoning_gym/noisy", 3)
    assert task.accepts(task.answer)
    assert random.random() == expected
    assert capsys.readouterr().out == ""


def test_questions_that_cannot_be_made_or_answered_are_passed_over(stand_in):
    made = [make("reasoning_gym/patchy", number).question for number in range(6)]
    assert made == [make("reasoning_gym/sums", n).question for n in (0, 3, 3, 3, 6, 6)]
    drawn = list(tasks(["reasoning_gym/patchy", "addition"], 100))
    assert len({task.question for task in drawn}) == 100
    assert all(task.accepts(task.answer) for task in drawn)


def test_a_kind_that_fails_later_on_is_refused_then(stand_in):
    assert make("reasoning_gym/runs_out", 4).question
    with pytest.raises(RefusedError, match=r"no sound question from number 5 on: .*range"):
        make("reasoning_gym/runs_out", 5)


@pytest.mark.parametrize("kind", FLAWS)
def test_what_cannot_be_used_is_refused_with_the_reason(stand_in, kind):
    name = f"reasoning_gym/{kind}"
    for ask in (kinds, lambda name: make(name, 0), lambda name: tasks([name], 1)):
        with pytest.raises(RefusedError, match=f"tasks={name}: .*{FLAWS[kind]}"):
            ask(name)


def test_a_pattern_means_the_kinds_that_can_be_used(stand_in):
    from loguru import logger

    said = []
    sink = logger.add(said.append, format="{message}")
    assert kinds("reasoning_gym/*s") == ["reasoning_gym/sums"]
    everything = kinds("reasoning_gym/*")
    logger.remove(sink)
    assert everything == [f"reasoning_gym/{name}" for name in STAND_IN if name not in FLAWS]
    assert "reasoning_gym/*: 5 of 11 kinds. Left out: without_answer: its questions" in said[-1]
    assert kinds("addition") == ["addition"]
    assert kinds(None) == [name for name in TASKS if name != "small_addition"]


def test_an_unknown_kind_is_refused_with_those_near_it(stand_in):
    for ask in (kinds, lambda name: make(name, 0), lambda name: tasks([name], 1)):
        with pytest.raises(RefusedError, match=r"gym/sum: no such .* Near it: reasoning_gym/sums"):
            ask("reasoning_gym/sum")


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RefusedError, match=r'pip install -e "\.\[reasoning-gym\]"') as refused:
        PackedSpec(source="task", path="reasoning_gym/sums").build(seed=0)
    assert "\n" not in str(refused.value)


def test_the_package_is_imported_only_when_it_is_asked_for(tmp_path):
    (tmp_path / "reasoning_gym.py").write_text("raise SystemExit('imported')")
    code = (
        "import llm, llm.data.sources; from llm.data.tasks.registry import *; "
        "print(len(list(tasks(kinds(None), 50))), flush=True); kinds('reasoning_gym/dice')"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("50\n", "imported\n")


def test_they_are_a_source(stand_in, monkeypatch, tmp_path):
    settings = {
        "source": "task", "path": "reasoning_gym/[sa]*", "max_documents": 200, "seq_len": 128,
        "batch_size": 4, "cache_dir": str(tmp_path), "eval_fraction": 0.2,
        "tokenizer": TokenizerSpec(vocab_size=400),
    }  # fmt: skip
    data = PackedSpec(**settings).build(seed=0, chat=ChatSettings(CHATML))
    train, held_out = data.fingerprint["train"], data.fingerprint["eval"]
    assert train["documents"] + held_out["documents"] == 200
    # What is held out depends on the text, and no question comes twice: none is on both sides.
    decode = data.tokenizer.decode
    asked = {decode(question.prompt) for question in data.questions(200)}
    trained = "".join(decode(batch["tokens"].ravel()) for batch in map(data.batch, range(40)))
    lines = [line for line in "\n".join(asked).splitlines() if line.startswith(("What", "The"))]
    assert len(lines) == held_out["documents"]
    assert not [line for line in lines if line in trained]
    # Another version of the package may ask other questions: nothing is taken from a cache then.
    monkeypatch.setattr(reasoning_gym, "version", lambda: "1.1")
    again = PackedSpec(**settings).build(seed=0, chat=ChatSettings(CHATML))
    assert again.fingerprint["sources"][0]["cache"] != data.fingerprint["sources"][0]["cache"]


LOOK_AT_EACH = """
import json, warnings
warnings.simplefilter("ignore")
from llm.data.tasks import reasoning_gym
names = reasoning_gym._names()
usable = reasoning_gym.kinds("reasoning_gym/*")
made = [[reasoning_gym.make(name, number) for number in (1, 2, 1001)] for name in usable]
nothing = ("", "nonsense", "I do not know.")
print(json.dumps({
    "names": names,
    "flaws": {name: flaw for name in names if (flaw := reasoning_gym._flaw(name))},
    "tasks": [(task.name, task.question, task.answer) for tasks in made for task in tasks],
    "right": [task.accepts(task.answer) for tasks in made for task in tasks],
    "nothing": [task.accepts(text) for tasks in made for task in tasks for text in nothing],
    "others": {tasks[0].name: [task.accepts(other.answer) for task in tasks for other in tasks
               if task.answer != other.answer] for tasks in made},
}))
"""


@pytest.mark.reasoning_gym
def test_the_package_itself():
    runs = []
    for hash_seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", LOOK_AT_EACH],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path.cwd())},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        runs.append(json.loads(ran.stdout))
    seen = runs[0]
    assert runs[1] == seen
    assert len(seen["tasks"]) == 3 * (len(seen["names"]) - len(seen["flaws"])) >= 3 * 83
    assert {f"reasoning_gym/{kind}" for kind in reasoning_gym._UNFIT} <= set(seen["names"])
    assert all(seen["right"])
    assert not any(seen["nothing"]) and not any(map(any, seen["others"].values()))
