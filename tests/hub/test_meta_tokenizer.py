"""Tokenizers of Meta's folders: ranked tokens as tiktoken merges them, and SentencePiece."""

import struct
from itertools import pairwise
from pathlib import Path

import pytest
from small_meta import RANKS, write_ranks

from llm.core.spec import RefusedError
from llm.hub.meta_tokenizer import read_meta_tokenizer, special_names


def reference(text: bytes) -> list[int]:
    """tiktoken's merging of one word."""
    ranks = {token: rank for rank, token in enumerate(RANKS)}
    parts = [bytes([byte]) for byte in text]
    while True:
        pairs = [ranks.get(a + b, len(RANKS)) for a, b in pairwise(parts)]
        if text in ranks or not pairs or min(pairs) == len(RANKS):
            return [ranks[text]] if text in ranks else [ranks[part] for part in parts]
        best = pairs.index(min(pairs))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]


def test_ranked_tokens(tmp_path: Path) -> None:
    tokenizer, stops = read_meta_tokenizer(write_ranks(tmp_path / "x"), newer=True)
    n = len(RANKS)
    # One word each by Llama 3's pattern.
    for word in ["the", " the", "thin", " tether", "123", "12", "été", "aaaaa", "日本", "  ", "😀"]:
        assert tokenizer.encode(word) == reference(word.encode()), word
    for text in ["I'm  in\n\n  the 12345 été!", "\r\n\t x", "<|eot_id|>"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("12345") == [RANKS.index(b"123"), *b"45"]
    assert tokenizer.encode("<|eot_id|>x", specials=True) == [n + 9, ord("x")]
    assert tokenizer.separator == "<|end_of_text|>"
    assert tokenizer.start_id == n
    assert stops == (n + 1, n + 8, n + 9)
    assert tokenizer.vocab_size == n + 256


def test_names_of_special_tokens() -> None:
    older, newer = special_names(newer=False), special_names(newer=True)
    assert len(set(older)) == len(set(newer)) == 256
    assert older[:11] == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_special_token_{n}|>" for n in range(4)),
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
        "<|reserved_special_token_5|>",
    ]
    assert newer[4:6] == ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"]
    assert newer[8:12] == [
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_3|>",
    ]
    assert (older[-1], newer[-1]) == (
        "<|reserved_special_token_250|>",
        "<|reserved_special_token_247|>",
    )


def varint(number: int) -> bytes:
    low = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([byte | 0x80 for byte in low[:-1]] + low[-1:])


def field(number: int, value: int | float | bytes) -> bytes:
    match value:
        case bytes():
            return varint(number << 3 | 2) + varint(len(value)) + value
        case float():
            return varint(number << 3 | 5) + struct.pack("<f", value)
        case _:
            return varint(number << 3) + varint(value)


def sentencepiece_model(kind: int = 2) -> bytes:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    words = ["▁t", "he", "▁the", "▁", *"abcdehnortx"]
    pieces += [(word, -float(n), 1) for n, word in enumerate(words)]
    content = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + (field(3, t) if t != 1 else b""))
        for text, score, t in pieces
    )
    return content + field(2, field(3, kind)) + field(3, field(1, b"identity") + field(3, 1))


def test_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(sentencepiece_model())
    tokenizer, stops = read_meta_tokenizer(tmp_path / "x", newer=False)
    ids = tokenizer.encode("the other\n")
    assert [tokenizer.pieces[i] for i in ids] == [
        *(b" the", b" ", b"o", b"t", b"he", b"r", b"\n"),
    ]
    assert tokenizer.decode(ids) == "the other\n"
    assert (stops, tokenizer.start_id, tokenizer.separator) == ((2,), 1, "</s>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no token for the byte 0"),
        (b"YQ== 0\n", "no token for the byte 0"),
        (b"YQ== 1\n", "line 1: rank 1, expected 0"),
        (b"a b c", "line 1: expected a token in base64"),
        (sentencepiece_model(3), "SentencePiece model of type 3: expected 1"),
        (sentencepiece_model()[:-3], "not a SentencePiece model"),
        (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "not a SentencePiece model"),
    ],
)
def test_tokenizers_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RefusedError, match=f"{message}.*data.tokenizer.path"):
        read_meta_tokenizer(tmp_path / "x", newer=False)
