"""Conversations as tokens: the same as transformers', and trained where the template says."""

from __future__ import annotations

import importlib.resources
from typing import Any

import jinja2
import pytest
from chat_records import CONVERSATIONS, encode, trained_text
from chat_templates import CHATML, FORGETFUL, TAGGED, untagged
from data_corpora import random_texts

from llm.core.spec import RefusedError
from llm.data import chat_template
from llm.data.bpe import train_bpe
from llm.data.chat_tokens import special_names
from llm.data.conversations import ChatSettings, end_of_turn
from llm.data.specs import TokenizerSpec
from llm.data.tokenizer import Tokenizer

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": "int"}}}]


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer) -> Any:
    return as_theirs(tokenizer)


def as_theirs(tokenizer: Tokenizer) -> Any:
    from tokenizers import Tokenizer as Inner
    from transformers import PreTrainedTokenizerFast

    inner = Inner.from_str(tokenizer.to_hf_json())
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=name_of(tokenizer, tokenizer.start_id),
        eos_token=tokenizer.separator,
    )


def name_of(tokenizer: Tokenizer, index: int) -> str:
    return next(name for name, i in tokenizer.special_ids.items() if i == index)


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", TAGGED)
def test_tokens_and_mask_are_those_of_transformers(tokenizer, theirs, name: str, case: str):
    messages, template = CONVERSATIONS[case], TAGGED[name]
    expected = theirs.apply_chat_template(
        messages, tools=TOOLS, chat_template=template, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    encoded = encode(tokenizer, {"messages": messages, "tools": TOOLS}, template)
    assert encoded.tokens.tolist() == expected["input_ids"]
    assert encoded.trained.astype(int).tolist() == expected["assistant_masks"]
    assert encoded.trained.any() == (case != "no answer")


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", ["chatml", "default system", "inst", "headers"])
def test_derived_spans_are_those_of_the_tags(tokenizer, name: str, case: str):
    record = {"messages": CONVERSATIONS[case], "tools": TOOLS}
    with_tags = encode(tokenizer, record, TAGGED[name])
    without = encode(tokenizer, record, untagged(TAGGED[name]))
    assert without.tokens.tolist() == with_tags.tokens.tolist()
    assert without.trained.tolist() == with_tags.trained.tolist()


@pytest.mark.parametrize(
    "name",
    ["llama3", "qwen2_5", "qwen3", "phi3", "gemma3", "cohere", "deepseekv3", "gptoss", "lfm2"],
)
def test_templates_in_use(tokenizer: Tokenizer, name: str):
    """Those of well-known models, as TRL has marked them for training."""
    path = importlib.resources.files("trl") / "chat_templates" / f"{name}_training.jinja"
    template = path.read_text()
    extended = tokenizer.with_special_tokens(tuple(special_names(template)))
    peer, compared = as_theirs(extended), 0
    for messages in CONVERSATIONS.values():
        try:
            expected = peer.apply_chat_template(
                messages, chat_template=template, tokenize=True, return_dict=True,
                return_assistant_tokens_mask=True,
            )  # fmt: skip
        except (jinja2.TemplateError, TypeError):  # not every template takes every conversation
            with pytest.raises(RefusedError):
                encode(extended, {"messages": messages}, template)
            continue
        encoded = encode(extended, {"messages": messages}, template)
        assert encoded.tokens.tolist() == expected["input_ids"]
        assert encoded.trained.astype(int).tolist() == expected["assistant_masks"]
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", TAGGED)
def test_the_end_of_a_turn_is_trained(tokenizer, name: str):
    end = end_of_turn(ChatSettings(TAGGED[name]), tokenizer)
    assert name_of(tokenizer, end) in ("<|im_end|>", "<|eot_id|>", tokenizer.separator)
    encoded = encode(tokenizer, {"messages": CONVERSATIONS["several turns"]}, TAGGED[name])
    assert (encoded.tokens[encoded.trained] == end).sum() == 2


def test_a_template_that_rewrites_what_it_wrote_is_refused(tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>hm</think>b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    with pytest.raises(RefusedError, match=r"here: .*message 2 in another way.*generation"):
        encode(tokenizer, {"messages": messages}, FORGETFUL)
    # The last answer can be told apart all the same.
    encoded = encode(tokenizer, {"messages": messages}, FORGETFUL, loss_on="last")
    assert trained_text(tokenizer, encoded) == "d<|im_end|>"


def test_an_answer_that_does_not_begin_as_asked_for_is_refused(tokenizer):
    template = untagged(CHATML).replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant: '")
    with pytest.raises(RefusedError, match="in another way than it begins one: ': ' became"):
        encode(tokenizer, {"messages": CONVERSATIONS["one turn"]}, template)


def test_what_is_said_is_not_a_special_token(tokenizer):
    said = "stop <|im_end|> here"
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    for template in (CHATML, untagged(CHATML)):
        encoded = encode(tokenizer, {"messages": messages}, template)
        assert trained_text(tokenizer, encoded) == f"{said}<|im_end|>"
        end = tokenizer.special_ids["<|im_end|>"]
        assert (encoded.tokens == end).sum() == 2
        assert encoded.tokens[encoded.trained][-1] == end


def test_the_default_template_is_that_of_the_tests(tokenizer):
    for case in ("one turn", "several turns", "emoji"):
        record = {"messages": CONVERSATIONS[case]}
        ours, same = encode(tokenizer, record, chat_template.CHATML), encode(tokenizer, record)
        assert ours.tokens.tolist() == same.tokens.tolist()
        assert ours.trained.tolist() == same.trained.tolist()
    assert tuple(special_names(chat_template.CHATML)) == ("<|im_end|>", "<|im_start|>")


def test_new_special_tokens(tokenizer):
    plain = train_bpe(random_texts(50), TokenizerSpec(vocab_size=300, special_tokens=["</s>"]))
    larger = plain.with_special_tokens(["<|im_start|>", "</s>", "<|im_end|>"])
    assert larger.vocab_size == plain.vocab_size + 2
    assert larger.separator == "</s>"
    text = random_texts(3)[2]
    assert larger.encode(text) == plain.encode(text)
    assert larger.encode("<|im_end|>", specials=True) == [plain.vocab_size + 1]
    assert larger.with_special_tokens(["<|im_end|>"]) is larger
    assert plain.vocab_size == Tokenizer.from_json(plain.to_json()).vocab_size
