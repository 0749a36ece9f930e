"""Questions: held out from training, with choices of which one is right, from files."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.spec import RefusedError
from llm.data.chat_template import CHATML
from llm.data.conversations import ChatSettings, Conversations
from llm.data.formats import Format, PlainText
from llm.data.source import Skipped
from llm.data.sources import open_source
from llm.data.specs import SourceSpec
from llm.data.split import held_out_documents
from llm.data.tasks.registry import TASKS
from llm.data.token_cache import hashes_of
from llm.eval.answers import write_answers
from llm.eval.asking import Asking, asking, check_length
from llm.eval.choices import answer_choices, credit, pick
from llm.eval.core_suite import TASKS as CORE
from llm.eval.core_suite import core_suite, items
from llm.eval.questions import Question, QuestionSet, held_out_tasks, question_set, with_choices
from llm.eval.scorer import NotFiniteError, Scored, Scorer
from llm.generate.engine import Engine
from llm.generate.language_model import LanguageModel
from llm.generate.specs import Sampling
from llm.train.grpo.prompts import PromptRecords


@pytest.mark.parametrize(
    "format",
    [PlainText("text"), Conversations(ChatSettings(CHATML)), PromptRecords(None)],
    ids=["pretrain", "sft", "grpo"],
)
def test_generated_questions_are_those_that_training_holds_out(
    tmp_path: Path, format: Format
) -> None:
    source = SourceSpec(source="task", path="addition", max_documents=3000)
    documents = open_source(source, tmp_path, format).documents(Skipped())
    texts = [document.text for document in documents]
    (mask,) = held_out_documents([hashes_of([text.encode() for text in texts])], 0.005)
    held_out = [text for text, out in zip(texts, mask, strict=True) if out]
    found = [
        f"{task.question}\n{task.answer}" for task in held_out_tasks("addition", len(held_out))
    ]
    assert len(found) > 5 and found == held_out


@pytest.mark.parametrize("kind", ["addition", "parity", "sort_words", "weekday", "spell"])
def test_choices_have_one_right_answer(kind: str) -> None:
    tasks = held_out_tasks(kind, 8)
    questions = with_choices([Question(t.question, t.answer, t.accepts) for t in tasks], kind)
    assert questions == with_choices(
        [Question(t.question, t.answer, t.accepts) for t in tasks], kind
    )
    for question in questions:
        assert [question.accepts(choice) for choice in question.choices].count(True) == 1
        assert len(set(question.choices)) == len(question.choices) == (2 if kind == "parity" else 4)
    assert len({question.choices.index(question.answer) for question in questions}) > 1


def test_a_file_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "colours.jsonl"
    records = [{"question": f"q{n}", "choices": ["a", "b", "c"], "answer": n % 3} for n in range(5)]
    records.append({"question": "text", "choices": ["a", "b"], "answer": "b"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = question_set(str(path), limit=4, shots=2)
    assert (task.name, task.picks) == ("colours", True)
    assert [shot.text for shot in task.shots] == ["q0", "q1"]
    assert [(q.text, q.answer) for q in task.questions] == [
        ("q2", "c"), ("q3", "a"), ("q4", "b"), ("text", "b")
    ]  # fmt: skip
    assert task.chance == pytest.approx((3 / 3 + 1 / 2) / 4)
    path.write_text('{"question": "one\u2028two?", "answer": "2"}\r\n')
    assert question_set(str(path), limit=None, shots=0).questions[0].text == "one\u2028two?"
    path.write_text('{"question": "1 + 1?", "answer": 2}\n')
    task = question_set(str(path), limit=None, shots=0)
    assert not task.picks and task.chance == 0
    assert task.questions[0].accepts(" 2.") and not task.questions[0].accepts("22")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "expected {"),
        ('{"question": "q"}', "expected {"),
        ('{"question": "q", "answer": "c", "choices": ["a", "b"]}', "expected {"),
        ('{"question": "q", "answer": 2, "choices": ["a", "b"]}', "expected {"),
        ('{"question": "q", "answer": "a", "choices": ["a", "a"]}', "expected {"),
        ('{"question": "q", "answer": 1, "choices": {"text": ["a", "b"], "label": ["A", "B"]}}',
         r"bad\.jsonl:1: expected {"),
        ('{"question": "q", "answer": 0, "choices": 3}', "expected {"),
        ('{"question": "q", "answer": "a"}\n{"question": "", "answer": "a", "choices": ["a", "b"]}',
         "some questions have choices and some have not"),
        ("", "0 questions"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_task_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(RefusedError, match=message):
        question_set(str(path), limit=None, shots=0)


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    for name, message in [
        ("adition", r"tasks=adition: no such kind of task.*, or a \.jsonl file"),
        (str(tmp_path / "no.jsonl"), "cannot be read"),
        ("small_addition", "questions are held out of it, and 50 are wanted as examples"),
    ]:
        with pytest.raises(RefusedError, match=message):
            question_set(name, limit=None, shots=50)


def test_the_likeliest_choice_by_text_and_by_byte() -> None:
    def scored(*log_probs: float) -> Scored:
        return Scored(np.array(log_probs, np.float32), np.zeros(len(log_probs), bool))

    found = pick([scored(-1.0), scored(-0.9, -0.9)], ["é", "abcd"], "task")
    assert found == ((0,), (1,))  # -1 > -1.8, but -1 / 2 bytes < -1.8 / 4 bytes
    tie = pick([scored(-1.0), scored(-2.0), scored(-1.0)], ["a", "b", "cd"], "task")
    assert tie == ((0, 2), (2,))
    assert [credit(tie.in_all, right) for right in range(3)] == [0.5, 0, 0.5]
    for value in (np.nan, -np.inf):
        with pytest.raises(NotFiniteError, match=r"^task words, .* not finite has no score"):
            pick([scored(-1.0), scored(value)], ["a", "b"], "task words")


def test_plain_and_chat_prompts(lm) -> None:
    shot = Question("1 + 1?", "2", bool)
    asked = Question("2 + 2?", "4", bool, ("4", "5"))
    plain = asking(lm.pretrained, "auto")
    assert plain.template is None and plain.stops == ("\n",)
    ids = plain.prompt(asked, [shot])
    text = "Question: 1 + 1?\nAnswer: 2\n\nQuestion: 2 + 2?\nAnswer:"
    assert ids[0] == lm.tokenizer.start_id and lm.tokenizer.decode(ids) == text
    assert ids[1:] + plain.choice(asked, [shot], "4") == lm.tokenizer.encode(text + " 4")
    with pytest.raises(RefusedError, match=r"chat=always: .* has no chat template"):
        asking(lm.pretrained, "always")


def test_answers_are_written_and_judged(lm) -> None:
    how = Asking(lm.tokenizer, None)
    prompts = ["def return", "self for"]
    asked = [how.prompt(Question(prompt, "", bool), []) for prompt in prompts]
    written = lm.generate(asked, max_new_tokens=6, temperature=0.0)
    texts = [lm.tokenizer.decode(ids).split("\n")[0].strip() for ids in written]
    questions = (
        Question(prompts[0], "", lambda text: text == texts[0]),
        Question(prompts[1], "", lambda text: text == "no such answer"),
    )
    result = write_answers(
        lm, how, QuestionSet("both", questions, ()), Sampling(max_new_tokens=6, temperature=2.0),
        samples=3, batch_size=8, seed=0,
    )  # fmt: skip
    assert result["accuracy"] == 0.5 and result["questions"] == 2
    assert [answer["written"] for answer in result["answers"]] == texts
    assert set(result["pass_at"]) == {"1", "2"}


def test_questions_that_do_not_fit_are_refused(lm) -> None:
    how = Asking(lm.tokenizer, None)
    question = Question("def return", "", bool)
    n = len(how.prompt(question, []))
    written = QuestionSet("written", (question,), ())
    check_length(how, written, context=n + 5, max_new_tokens=5)
    with pytest.raises(RefusedError, match=rf"task written: a prompt of {n} .* room for {n - 1};"):
        check_length(how, written, context=n + 4, max_new_tokens=5)
    # The last token of a choice is predicted, but nothing follows it.
    choices = ("return", "日本 return")
    asked = Question("def return", "return", bool, choices)
    longest = max(len(how.choice(asked, [], text)) for text in choices)
    picked = QuestionSet("picked", (asked,), ())
    context = n + longest - 1
    check_length(how, picked, context, max_new_tokens=500)
    answer_choices(Scorer(lm.engine, context=context), how, picked)
    with pytest.raises(RefusedError, match=rf"task picked: a prompt of {n} .* room for {n - 1};"):
        check_length(how, picked, context - 1, max_new_tokens=0)


def test_choices_of_a_task_are_answered(lm) -> None:
    """The tiny model has read nothing but a few words: those it takes for likelier."""
    questions = tuple(
        Question(q, "return", bool, ("return", "日本")) for q in ("def", "self for", "x = 1")
    )
    task = QuestionSet("words", questions, ())
    result = answer_choices(Scorer(lm.engine), Asking(lm.tokenizer, None), task)
    assert result["accuracy"] == result["accuracy_per_byte"] == 1
    assert (result["chance"], result["questions"]) == (0.5, 3)


def test_core_items_are_sound_and_always_the_same() -> None:
    assert not set(CORE) & set(TASKS)
    for name in CORE:
        found = items(name, 100)
        assert found == items(name, 100) and len(set(found)) == len(found) >= 60, name
        for item in found:
            assert len(set(item.choices)) == len(item.choices) in (2, 4), item
            assert len(item.choices) == len(found[0].choices)
    assert items("counting_on", 1)[0].text.endswith(",")
    for text, choices in items("adding", 20):
        a, b = text.splitlines()[-1].removesuffix(" =").split(" + ")
        assert int(choices[0]) == int(a) + int(b)
    for text, choices in items("closing_brackets", 20):
        stack = []
        for bracket in text.split():
            if bracket in "([{<":
                stack.append(bracket)
            else:
                stack.pop()
        assert stack[-1] + choices[0].strip() in ("()", "[]", "{}", "<>")


def test_the_core_suite_centres_what_the_model_picks(lm) -> None:
    found = core_suite(Scorer(lm.engine), lm.tokenizer, limit=6)
    assert set(found["tasks"]) == set(CORE)
    centred = [(t["accuracy"] - t["chance"]) / (1 - t["chance"]) for t in found["tasks"].values()]
    assert found["score"] == pytest.approx(np.mean(centred))
    low, high = found["score_95"]
    assert low < found["score"] < high


def test_a_broken_model_is_no_better_than_chance(lm) -> None:
    """All tokens equally likely, then none a number: the right choice stands first in the suite."""

    def scorer(value: float) -> Scorer:
        params = jax.tree.map(lambda x: jnp.full_like(x, value), lm.params)
        return Scorer(Engine(lm.spec, params))

    uniform = core_suite(scorer(0.0), lm.tokenizer, limit=20)
    assert uniform["tasks"]["closing_brackets"]["accuracy"] == 0.25
    assert abs(uniform["score"]) < 0.25
    with pytest.raises(NotFiniteError, match=r"^suite core, task copying, .*nan"):
        core_suite(scorer(np.nan), lm.tokenizer, limit=1)


def test_what_a_broken_model_writes_is_not_judged(lm) -> None:
    broken = LanguageModel(
        lm.pretrained, jax.tree.map(lambda x: jnp.full_like(x, np.nan), lm.params)
    )
    task = QuestionSet("any", (Question("def", "x", bool),), ())
    with pytest.raises(NotFiniteError, match=r"^task any, an answer: .*nan"):
        write_answers(
            broken, Asking(lm.tokenizer, None), task, Sampling(max_new_tokens=2),
            samples=0, batch_size=1, seed=0,
        )  # fmt: skip
