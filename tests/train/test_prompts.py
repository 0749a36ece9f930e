"""Where the prompts of GRPO come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.core.spec import RefusedError
from llm.data.bpe import train_bpe
from llm.data.chat_template import CHATML
from llm.data.conversations import ChatSettings
from llm.data.specs import PackedSpec, SourceSpec, TokenizerSpec
from llm.data.tokenizer import Tokenizer
from llm.train.grpo.prompts import Prompts, parts_of


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["What is 1 + 2? 3"], TokenizerSpec(vocab_size=262))


def prompts_of(tokenizer: Tokenizer, chat: ChatSettings | None = None, **changes) -> Prompts:
    spec = PackedSpec(**{"source": "task", "path": "addition", "max_documents": 60,
                         "eval_fraction": 0.2} | changes)  # fmt: skip
    return Prompts(spec, 0, tokenizer, chat, tokenizer.special_ids["<|im_end|>"], 200)


@pytest.mark.parametrize(
    ("record", "messages", "answer"),
    [
        ({"prompt": "a", "answer": "b"}, ["a"], "b"),
        ({"question": "a", "answer": "x #### 4", "level": 3}, ["a"], "x #### 4"),
        ({"problem": "a", "solution": 7}, ["a"], "7"),
        ({"prompt": [{"role": "user", "content": "a"}],
          "completion": [{"role": "assistant", "content": "b"}]}, ["a"], "b"),
        ({"prompt": "a"}, ["a"], None),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                       {"role": "assistant", "content": "b"}]}, ["s", "a"], "b"),
        ({"messages": [{"role": "user", "content": "a"}]}, ["a"], None),
        ({"messages": [{"role": "user", "content": "a"}], "answer": 42}, ["a"], "42"),
    ],
)  # fmt: skip
def test_forms_of_records(record: dict, messages: list[str], answer: str | None) -> None:
    found, its_answer = parts_of(record, "here")
    assert [message["content"] for message in found] == messages
    assert its_answer == answer


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "here: it has text: expected messages, or prompt or question or problem"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "here: no message that could be"),
        ({"prompt": [1]}, "here: prompt: expected a list of messages"),
    ],
)
def test_other_records_are_refused(record: dict, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        parts_of(record, "here")


def test_prompts_are_questions_without_their_answers(tokenizer) -> None:
    prompts = prompts_of(tokenizer, ChatSettings(CHATML))
    (prompt,), place = prompts.draw(0, 1)
    assert place == 1
    text = tokenizer.decode(prompt.ids, skip_specials=False)
    question = prompt.example.messages[0]["content"]
    assert text == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.example.fields["task"] == "addition" and prompt.example.answer.isdecimal()
    plain = prompts_of(tokenizer).draw(0, 1)[0][0]
    assert tokenizer.decode(plain.ids) == question and plain.ids[0] == tokenizer.start_id


def test_an_epoch_has_every_prompt_once_and_the_next_another_order(tokenizer) -> None:
    prompts = prompts_of(tokenizer)
    count = prompts.fingerprint["train"]["documents"]
    questions = [p.example.messages[0]["content"] for p in prompts.draw(0, 2 * count)[0]]
    assert len(set(questions[:count])) == count
    assert sorted(questions[:count]) == sorted(questions[count:]) != questions[count:]
    again = [p.example.messages[0]["content"] for p in prompts.draw(7, 5)[0]]
    assert again == questions[7:12]


def test_held_out_prompts_are_those_of_fine_tuning(tokenizer, tmp_path: Path) -> None:
    prompts = prompts_of(tokenizer)
    held = {p.example.messages[0]["content"] for p in prompts.held_out(1000)}
    count = prompts.fingerprint["train"]["documents"]
    drawn = {p.example.messages[0]["content"] for p in prompts.draw(0, count)[0]}
    assert len(held) == prompts.fingerprint["eval"]["documents"] > 3 and not held & drawn
    assert [p.ids for p in prompts.held_out(3)] == [p.ids for p in prompts.held_out(1000)][:3]
    spec = PackedSpec(source="task", path="addition", max_documents=60, eval_fraction=0.2,
                      cache_dir=str(tmp_path))  # fmt: skip
    data = spec.build(seed=0, tokenizer=tokenizer, chat=ChatSettings(CHATML))
    asked = [tokenizer.decode(question.prompt) for question in data.questions(1000)]
    assert {text.removeprefix("user\n").removesuffix("\nassistant\n") for text in asked} == held


def test_long_prompts_are_left_out(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [{"prompt": "a" * (500 if n % 2 else 5) + str(n)} for n in range(10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"source": "jsonl", "path": str(path), "max_documents": None, "eval_fraction": 0.0}
    found, place = prompts_of(tokenizer, **changes).draw(0, 5)
    assert place >= 9 and all(len(prompt.ids) < 30 for prompt in found)
    assert prompts_of(tokenizer, **changes).held_out(5) == []
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[1::2]))
    with pytest.raises(RefusedError, match="no prompt is short enough: expected at most 200"):
        prompts_of(tokenizer, **changes).draw(0, 1)


def test_a_mixture_has_its_shares(tokenizer) -> None:
    members = [SourceSpec(source="task", path="addition", max_documents=50, weight=3.0),
               SourceSpec(source="task", path="spell", max_documents=50)]  # fmt: skip
    prompts = prompts_of(tokenizer, source="stdlib", path=None, max_documents=None, mixture=members)
    kinds = [prompt.example.fields["task"] for prompt in prompts.draw(0, 400)[0]]
    assert 0.7 < kinds.count("addition") / 400 < 0.8
