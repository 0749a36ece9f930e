"""Conversations as tokens: the same as transformers', and trained exactly where they should be."""

from __future__ import annotations

import importlib.resources
import json
import random
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from chat_templates import CHATML, FORGETFUL, HEADERS, INST, TAGGED, untagged
from data_corpora import random_texts

from llm.core.spec import RefusedError
from llm.data import chat_template
from llm.data.bpe import train_bpe
from llm.data.chat_tokens import special_names
from llm.data.conversations import ChatEncoder, ChatSettings, Conversations, end_of_turn
from llm.data.fitting import fit, trained_targets
from llm.data.pipeline import Data
from llm.data.specs import PackedSpec, PaddedSpec, TokenizerSpec
from llm.data.split import Spans
from llm.data.tokenizer import Tokenizer

SPECIALS = [
    "<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
]  # fmt: skip

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": "int"}}}]

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    "several turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c  d\n"},
        {"role": "user", "content": " 1 + 1?"},
        {"role": "assistant", "content": "2"},
    ],
    "emoji": [
        {"role": "user", "content": "👩‍👩‍👧 Grüße 🙂"},
        {"role": "assistant", "content": "🇨🇭 日本語 🙂x"},
    ],
    "empty": [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "still there?"},
        {"role": "assistant", "content": "yes"},
    ],
    "tools": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "a": 2}]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "It is 5."},
    ],
    "no answer": [{"role": "user", "content": "Hello?"}],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    spec = TokenizerSpec(vocab_size=420, special_tokens=SPECIALS)
    return train_bpe(random_texts(200), spec)


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


def encode(tokenizer: Tokenizer, record: dict[str, Any], template: str = CHATML, **settings: Any):
    format = Conversations(ChatSettings(template, **settings))
    (encoded,) = format.encode([format.document(record, "here")], tokenizer)
    return encoded


def trained_text(tokenizer: Tokenizer, encoded: Any) -> str:
    return tokenizer.decode(encoded.tokens[encoded.trained], skip_specials=False)


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


# --- from files to rows -------------------------------------------------------------------------


def conversation(number: int, words: int) -> dict[str, Any]:
    rng = random.Random(number)
    answer = " ".join(rng.choice(["alpha", "beta", "gamma"]) for _ in range(words))
    return {
        "messages": [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture
def build(tmp_path: Path):
    """`build(records, PaddedSpec, loss_on="last", seq_len=32)`: the data of these records."""

    def make(records, kind=PackedSpec, *, template=CHATML, data=None, **settings) -> Data:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        changes = {
            "source": "jsonl", "path": str(path), "seq_len": 64, "batch_size": 4,
            "cache_dir": str(tmp_path / "cache"), "eval_fraction": 0.1,
            "tokenizer": TokenizerSpec(vocab_size=400, special_tokens=SPECIALS),
        } | (data or {})  # fmt: skip
        chat = ChatSettings(template, **settings)
        return kind(**changes).build(seed=0, chat=chat)

    return make


RECORDS = [conversation(number, 1 + number * 7 % 40) for number in range(80)]


def documents(data: Data, batches: int = 60):
    """Every document in the first batches: (tokens, targets' mask)."""
    for index in range(batches):
        batch = data.batch(index)
        for row in range(len(batch["tokens"])):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                here = batch["segment_ids"][row] == segment
                tokens = [*batch["tokens"][row][here][:1], *batch["targets"][row][here]]
                yield tuple(map(int, tokens)), tuple(map(int, batch["loss_mask"][row][here]))


@pytest.mark.parametrize("kind", [PackedSpec, PaddedSpec])
def test_rows_hold_whole_conversations(build, kind):
    data = build(RECORDS, kind, data={"seq_len": 128})
    encoder = ChatEncoder(ChatSettings(CHATML), data.tokenizer)
    expected = set()
    for record in RECORDS:
        tokens, trained = encoder.of_messages(None, record["messages"], {})
        expected.add((tuple(tokens.tolist()), tuple(trained[1:].astype(int).tolist())))
    found = set(documents(data))
    held_out = {
        (tuple(question.prompt), tuple(question.answer)) for question in data.questions(100)
    }
    assert found < expected
    assert len(found) + len(held_out) == len(expected) == 80
    assert data.fingerprint["train"]["trained"] == sum(sum(mask) for _, mask in found)


def test_packed_and_padded_hold_the_same(build):
    both = [set(documents(build(RECORDS, kind))) for kind in (PackedSpec, PaddedSpec)]
    assert both[0] == both[1]


def test_padding_is_not_trained(build):
    batch = build(RECORDS, PaddedSpec).batch(0)
    assert not batch["loss_mask"][batch["segment_ids"] == 0].any()
    assert 0 < batch["loss_mask"].sum() < (batch["segment_ids"] > 0).sum()


@pytest.mark.parametrize("too_long", ["cut_right", "cut_left", "split", "drop"])
def test_conversations_longer_than_a_row(build, messages, too_long: str):
    records = [conversation(0, 200), *(conversation(n, 3) for n in range(1, 20))]
    data = build(records, too_long=too_long, data={"eval_fraction": 0})
    encoder = ChatEncoder(ChatSettings(CHATML), data.tokenizer)
    whole = encoder.of_messages(None, records[0]["messages"], {}).tokens.tolist()
    found = [tokens for tokens, _ in documents(data, 5)]
    parts = [tokens for tokens in found if len(tokens) == 65]
    if too_long == "cut_right":
        assert set(parts) == {tuple(whole[:65])}
    elif too_long == "cut_left":
        assert set(parts) == {tuple(whole[-65:])}
    elif too_long == "split":
        assert set(parts) == {tuple(whole[i : i + 65]) for i in range(0, len(whole) - 65, 64)}
    else:
        assert not parts
    assert any(
        f"1 of 20 conversations are longer than data.seq_len=64 (trainer.too_long={too_long})"
        in line
        for line in messages
    )


def test_nothing_to_train_is_left_out_and_counted(build, messages):
    empty = {"messages": [{"role": "user", "content": "Hello?"}]}
    data = build([empty, *RECORDS[:20], {**empty, "messages": empty["messages"] * 2}])
    assert any("left out 2 conversations with nothing to train" in line for line in messages)
    assert data.fingerprint["sources"][0]["nothing_to_train"] == 2
    assert all(any(mask) for _, mask in documents(data, 5))
    silent = [{"messages": [{"role": "user", "content": "?" * n}]} for n in range(1, 4)]
    with pytest.raises(RefusedError, match=r"no conversation has anything to train: 3 read"):
        build(silent, data={"eval_fraction": 0})
    long = [conversation(number, 100) for number in range(3)]
    with pytest.raises(RefusedError, match=r"longer than data.seq_len=8 \(trainer.too_long=drop\)"):
        build(long, too_long="drop", data={"seq_len": 8})


def test_trained_targets_equals_counting():
    rng = np.random.default_rng(0)

    class Cache:
        trained = rng.random(500) < 0.3

    start = rng.integers(0, 400, 60)
    spans = Spans(start, rng.integers(0, 99, 60))
    for cache in (Cache(), type("Plain", (), {"trained": None})()):
        counts = trained_targets(cache, spans)
        for number, (begin, length) in enumerate(zip(*spans, strict=True)):
            window = slice(begin + 1, begin + 1 + length)
            expected = length if cache.trained is None else cache.trained[window].sum()
            assert counts[number] == expected
    assert len(trained_targets(Cache(), Spans(start[:0], start[:0]))) == 0
    kept, _ = fit(Cache(), spans, 20, "cut_right")
    assert (trained_targets(Cache(), kept) > 0).all()


def test_questions_are_held_out_prompts_with_their_answers(build):
    data = build(RECORDS, data={"eval_fraction": 0.3})
    questions = data.questions(5)
    assert questions == data.questions(5)
    assert len(questions) == 5 and len(set(map(str, questions))) == 5
    trained = {tokens for tokens, _ in documents(data)}
    for prompt, answer in questions:
        assert tuple(prompt + answer) not in trained
        text = data.tokenizer.decode(prompt, skip_specials=False)
        assert text.endswith("<|im_start|>assistant\n")
        assert data.tokenizer.decode(answer, skip_specials=False).endswith("<|im_end|>")
    assert build(RECORDS, loss_on="all", data={"eval_fraction": 0.3}).questions(5) == []


def test_examples_say_what_is_trained(build):
    data = build(RECORDS)
    (first, second) = data.examples(2)
    for pieces in (first, second):
        text = "".join(text for text, trained in pieces if trained)
        assert text.endswith("<|im_end|>")
        assert not pieces[0][1]


def test_tables_of_conversations(tmp_path: Path, build):
    import datasets

    table = datasets.Dataset.from_list([{**record, "id": 7} for record in RECORDS])
    table.to_parquet(tmp_path / "chats.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    kinds = {"jsonl": "chats.jsonl", "parquet": "chats.parquet", "hf": "saved"}
    rows = [
        set(documents(build(RECORDS, data={"source": source, "path": str(tmp_path / name)})))
        for source, name in kinds.items()
    ]
    assert rows[0] == rows[1] == rows[2]
    datasets.Dataset.from_dict({"id": [1, 2]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(RefusedError, match="has id: expected messages, or prompt and completion"):
        build(RECORDS, data={"source": "parquet", "path": str(tmp_path / "other.parquet")})


def test_tasks_are_a_source(tmp_path: Path):
    settings = {
        "source": "task", "max_documents": 300, "seq_len": 256, "batch_size": 4,
        "cache_dir": str(tmp_path), "tokenizer": TokenizerSpec(vocab_size=500),
        "eval_fraction": 0.1,
    }  # fmt: skip
    chat = PackedSpec(**settings).build(seed=0, chat=ChatSettings(CHATML))
    total = chat.fingerprint["train"]["documents"] + chat.fingerprint["eval"]["documents"]
    assert total == 300
    text = PackedSpec(**settings, path="addition").build(seed=0)
    assert "+" in text.tokenizer.decode(text.batch(0)["tokens"][0])
    with pytest.raises(RefusedError, match="telepathy"):
        PackedSpec(**settings, path="telepathy").build(seed=0)
