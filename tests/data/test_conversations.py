"""What a record may hold, and what of it is trained."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_records import CONVERSATIONS, encode, trained_text
from chat_templates import CHATML, HEADERS, INST, untagged

from llm.core.spec import RefusedError
from llm.data.conversations import ChatSettings, Conversations


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        ("assistant", "c  d\n<|im_end|>2<|im_end|>"),
        ("last", "2<|im_end|>"),
        ("all", None),
    ],
)
@pytest.mark.parametrize("template", [CHATML, untagged(CHATML)])
def test_modes_on_messages(tokenizer, template: str, loss_on: str, expected: str | None):
    record = {"messages": CONVERSATIONS["several turns"]}
    encoded = encode(tokenizer, record, template, loss_on=loss_on)
    everything = tokenizer.decode(encoded.tokens, skip_specials=False)
    assert trained_text(tokenizer, encoded) == (everything if expected is None else expected)


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        ("assistant", "2<|im_end|>4<|im_end|>"),
        ("last", "4<|im_end|>"),
        (
            "completion",
            "2<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
        ),
    ],
)
def test_modes_on_prompt_and_completion(tokenizer, loss_on: str, expected: str):
    record = {
        "prompt": CONVERSATIONS["several turns"][:4],
        "completion": [
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "4"},
        ],
    }
    for template in (CHATML, untagged(CHATML)):
        encoded = encode(tokenizer, record, template, loss_on=loss_on)
        assert trained_text(tokenizer, encoded) == expected


def test_texts(tokenizer):
    start, stop = tokenizer.start_id, tokenizer.separator_id
    pair = {"prompt": "alpha beta", "completion": " gamma delta"}
    encoded = encode(tokenizer, pair)
    assert encoded.tokens.tolist() == [start, *tokenizer.encode("alpha beta gamma delta"), stop]
    assert tokenizer.decode(encoded.tokens[encoded.trained]) == " gamma delta"
    assert encoded.trained[-1] and not encoded.trained[0]
    assert encode(tokenizer, pair, loss_on="all").trained.all()
    whole = encode(tokenizer, {"text": "alpha beta"})
    assert whole.tokens.tolist() == [start, *tokenizer.encode("alpha beta"), stop]
    assert whole.trained.all()
    for loss_on in ("last", "completion"):
        with pytest.raises(RefusedError, match=f"loss_on={loss_on}: a plain text has no such"):
            encode(tokenizer, {"text": "alpha"}, loss_on=loss_on)


def test_a_prompt_in_the_middle_of_a_token(tokenizer):
    """A token with a character of the completion belongs to the completion."""
    text = "alpha beta"
    ids, spans = tokenizer.encode_with_spans(text)
    for cut in range(len(text)):
        encoded = encode(tokenizer, {"prompt": text[:cut], "completion": text[cut:]})
        first = next(i for i, (_, stop) in enumerate(spans) if stop > cut)
        assert encoded.trained[1:-1].tolist() == [i >= first for i in range(len(ids))]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "a"}, "here: it has question: expected messages, or prompt and completion"),
        ({"messages": "a"}, 'here: messages: expected a list of messages.*found "a"'),
        ({"messages": [{"content": "a"}]}, "here: messages: expected a list of messages"),
        ({"prompt": "a", "completion": [{"role": "user"}]}, "here: prompt: expected a list"),
        ({"messages": CONVERSATIONS["one turn"], "tools": "{"}, "here: tools: not valid JSON"),
    ],
)
def test_broken_records_are_named(tokenizer, record: dict[str, Any], words: str):
    with pytest.raises(RefusedError, match=words):
        encode(tokenizer, record)


def test_nulls_that_tables_add_do_not_reach_the_template(tokenizer):
    bare = CONVERSATIONS["one turn"]
    padded = [{**message, "tool_calls": None} for message in bare]
    of_table = {"messages": padded, "tools": None, "prompt": None}
    assert (
        encode(tokenizer, of_table, HEADERS).tokens.tolist()
        == encode(tokenizer, {"messages": bare}, HEADERS).tokens.tolist()
    )


def test_the_template_counts_for_the_cache():
    identities = {
        json.dumps(Conversations(settings).identity())
        for settings in (
            ChatSettings(CHATML), ChatSettings(INST), ChatSettings(CHATML, loss_on="all"),
            ChatSettings(CHATML, end="</s>"),
        )
    }  # fmt: skip
    assert len(identities) == 4
