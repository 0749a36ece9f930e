"""The tokenizer in a GGUF file, against transformers and against the definitions."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from small_gguf import MERGES, TOKENS, TYPES, random_weights, small_config, write_gguf

from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer
from llm.hub.gguf_tokenizer import read_tokenizer

TEXTS = [
    "Hello world, the other thin thing",
    "  two  spaces,\ttabs\n\n\nand lines\r\n",
    "naïve café 漢字 العربية \u200b½ ²",
    "emoji 😀👩‍👩‍👧 and 🇩🇪",
    "def f(x):\n    return x ** 2 + 1.5e-3  # comment\n",
    "digits 12345 3.14 1,000,000 and ١٢٣",
    "I'm you're we'LL they'd",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<tool> x<tool>",
    "a  12\n   7",
    "\x00\x01 control",
    " " * 37 + "x",
    "",
]


def metadata(**changes: Any) -> dict[str, Any]:
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": TOKENS,
        "token_type": TYPES,
        "merges": MERGES,
        "bos_token_id": TOKENS.index("<|im_start|>"),
        "eos_token_id": TOKENS.index("<|im_end|>"),
        "add_bos_token": False,
    } | changes
    return {f"tokenizer.ggml.{key}": v for key, v in keys.items() if v is not None}


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    merged = ["th", "▁th", "▁the", "in", "▁▁", "▁▁▁▁", "er", "▁t"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzTHS'.,"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(letters))
    scores = [0.0] * 259 + [-float(n) for n in range(len(merged) + len(letters))]
    keys = {
        "model": "llama",
        "pre": None,
        "tokens": [*tokens, *merged, *letters],
        "token_type": types,
        "scores": scores,
        "merges": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": True,
    }
    return metadata(**(keys | changes))


def tokenizer(data: dict[str, Any]) -> Tokenizer:
    return read_tokenizer(data, 10_000).tokenizer


def by_transformers(folder: Path, data: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    dropped = {"tokenizer.ggml.pre": None, "tokenizer.ggml.merges": None}
    config = small_config()
    write_gguf(folder / "x.gguf", config, random_weights(config), metadata=dropped | data)
    return AutoTokenizer.from_pretrained(folder, gguf_file="x.gguf")


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_equals_transformers(tmp_path: Path, pre: str) -> None:
    data = metadata(pre=pre)
    ours, theirs = tokenizer(data), by_transformers(tmp_path, data)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, specials=True) == expected, text
        assert ours.decode(expected, skip_specials=False) == text
    assert ours.vocab_size == len(TOKENS)


def test_smollm_cuts_every_digit_from_what_is_before_it(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    data = metadata(pre="smollm")
    ours, theirs = tokenizer(data), by_transformers(tmp_path, data)
    # transformers takes GPT-2's cut for this one; llama.cpp and the model's own tokenizer.json
    # cut digits first.
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    for text in TEXTS:
        assert ours.encode(text, specials=True) == theirs.encode(text, add_special_tokens=False)
    assert ours.encode("  12") == [TOKENS.index(t) for t in ("ĠĠ", "1", "2")]


def test_qwen2_normalises_to_composed_characters() -> None:
    ours = tokenizer(metadata(pre="qwen2"))
    assert ours.encode("e\u0301") == ours.encode("\u00e9")


def test_llama3_takes_a_whole_word_that_is_a_token() -> None:
    tokens = [*TOKENS[:-4], "zebra", *TOKENS[-4:]]
    types = [1, *TYPES]
    for pre, expected in [("llama-bpe", ["zebra"]), ("gpt-2", [*"zebra"])]:
        ours = tokenizer(metadata(pre=pre, tokens=tokens, token_type=types))
        assert ours.encode("zebra") == [tokens.index(t) for t in expected]


def test_sentencepiece_equals_transformers(tmp_path: Path) -> None:
    data = sentencepiece_metadata()
    ours, theirs = tokenizer(data), by_transformers(tmp_path, data)
    for text in TEXTS:
        if text.startswith((" ", "\n")) or "<|" in text:
            continue  # see the next test
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, specials=True) == expected, text
        assert ours.decode(expected, skip_specials=False) == theirs.decode(expected) == text
    assert ours.pieces[3 + 0x0A] == b"\n"
    assert not ours.is_byte_level


def test_sentencepiece_merges_the_best_pair_first() -> None:
    data = sentencepiece_metadata()
    ours = tokenizer(data)
    tokens = data["tokenizer.ggml.tokens"]
    scores = dict(zip(tokens, data["tokenizer.ggml.scores"], strict=True))

    def reference(text: str) -> list[int]:
        parts = list(("▁" + text).replace(" ", "▁"))
        while True:
            pairs = [(scores.get(a + b), -i) for i, (a, b) in enumerate(pairwise(parts))]
            known = [pair for pair in pairs if pair[0] is not None]
            if not known:
                break
            best = -max(known)[1]
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        ids = []
        for part in parts:
            known_part = part in scores
            ids += [tokens.index(part)] if known_part else [3 + byte for byte in part.encode()]
        return ids

    for text in [*TEXTS, "  the", "   in there", "The thinner"]:
        if text and "<|" not in text:
            assert ours.encode(text) == reference(text), text
            assert ours.decode(ours.encode(text)) == text


def test_start_separator_and_stops() -> None:
    ours = read_tokenizer(metadata(), len(TOKENS))
    ids = {name: TOKENS.index(name) for name in TOKENS[-4:]}
    assert ours.stop_ids == (ids["<|im_end|>"],)
    assert ours.tokenizer.separator == "<|endoftext|>"
    assert set(ours.tokenizer.special_ids) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    with_bos = tokenizer(metadata(add_bos_token=True))
    assert with_bos.start_id == ids["<|im_start|>"]
    assert tokenizer(metadata(pre="llama-bpe", add_bos_token=None)).start_id == with_bos.start_id
    sentencepiece = read_tokenizer(sentencepiece_metadata(), 10_000)
    assert sentencepiece.stop_ids == (2,)
    assert (sentencepiece.tokenizer.separator, sentencepiece.tokenizer.start_id) == ("</s>", 1)


def test_a_document_does_not_produce_special_tokens() -> None:
    ours = tokenizer(metadata())
    assert not set(ours.encode("<|im_end|>")) & set(ours.special_ids.values())


def test_it_survives_json() -> None:
    for data in (metadata(pre="smollm"), sentencepiece_metadata()):
        ours = tokenizer(data)
        again = Tokenizer.from_json(ours.to_json())
        assert again.fingerprint == ours.fingerprint
        assert [again.encode(t) for t in TEXTS] == [ours.encode(t) for t in TEXTS]


def test_end_of_text_under_an_unknown_name() -> None:
    tokens = [*TOKENS[:-4], "<a>", "<b>", "<fin>", "<tool>"]
    ours = tokenizer(metadata(tokens=tokens))
    assert ours.separator == "<fin>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model=bert.*data.tokenizer.path"),
        ({"model": None}, "tokenizer.ggml.model=None"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre=tekken.*data.tokenizer.path"),
        ({"tokens": [*TOKENS[:-1], "a"]}, "token 'a' twice"),
        ({"tokens": []}, "0 tokens"),
        ({"tokens": "abc"}, "expected a list of str"),
        ({"token_type": [1]}, "1 types"),
        ({"merges": ["ab"]}, "'ab' is not a pair"),
        ({"merges": ["zz qq"]}, "merges do not fit"),
        ({"eos_token_id": 10**6}, "tokenizer.ggml.eos_token_id=1000000: expected 0 to"),
        ({"bos_token_id": "x", "add_bos_token": True}, "bos_token_id=x"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        read_tokenizer(metadata(**changes), len(TOKENS))


def test_more_tokens_than_rows_are_refused() -> None:
    with pytest.raises(RefusedError, match="expected 1 to 5, the rows"):
        read_tokenizer(metadata(), 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "0 scores"),
        ({"tokens": ["a", "b", "c"], "token_type": [1] * 3}, "byte 0"),
    ],
)
def test_sentencepiece_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        tokenizer(sentencepiece_metadata(**changes))
