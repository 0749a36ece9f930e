import numpy as np
import pytest
from data_corpora import random_texts

from llm.data.bpe import train_bpe
from llm.data.patterns import cutting_pattern
from llm.data.specs import BPESpec, TokenizerSpec
from llm.data.tokenizer import Tokenizer
from llm.data.tokenizer_quality import measure, renyi_efficiency, tokens_per_word
from llm.data.unicode_stress import STRESS

TEXTS = random_texts(40, seed=1)


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """As the pattern cuts it, before bytes are merged."""
    cuts = tokenizer._inner.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:stop] for _, (start, stop) in cuts]


@pytest.mark.parametrize(
    ("pattern", "max_digits", "expected"),
    [
        ("llama3", None, ["x", " ", "123", "45", "\n", " ", " _", "y", "(z", "😀"]),
        ("llama3", 1, ["x", " ", *"12345", "\n", " ", " _", "y", "(z", "😀"]),
        ("gpt2", None, ["x", " 12345", "\n ", " _", "y", "(", "z", "😀"]),
        ("gpt2", 2, ["x", " ", "12", "34", "5", "\n ", " _", "y", "(", "z", "😀"]),
    ],
)
def test_patterns_cut_as_documented(pattern: str, max_digits: int | None, expected) -> None:
    spec = BPESpec(vocab_size=259, pattern=pattern, max_digits=max_digits)
    assert words_of(train_bpe(["a"], spec), "x 12345\n  _y(z😀") == expected


def test_patterns_are_those_of_the_published_tokenizers() -> None:
    from tokenizers import Regex, pre_tokenizers

    text = "\n".join([*TEXTS, *STRESS.values()][:40])
    published = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex(cutting_pattern("gpt2")), "isolated")
    ours = [span for _, span in split.pre_tokenize_str(text)]
    assert ours == [span for _, span in published.pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", ["llama3", "gpt2"])
@pytest.mark.parametrize("name", STRESS)
def test_stress_texts_come_back(pattern: str, name: str) -> None:
    tokenizer = train_bpe(TEXTS, BPESpec(vocab_size=400, pattern=pattern, max_digits=1))
    assert tokenizer.decode(tokenizer.encode(STRESS[name])) == STRESS[name]


def test_figures_by_hand() -> None:
    spec = TokenizerSpec(vocab_size=262, min_frequency=1, special_tokens=["</s>"])
    tokenizer = train_bpe(["abc abc abc"], spec)  # " abc" with its parts, whatever their order
    pieces = {piece: index for index, piece in enumerate(tokenizer.pieces)}
    text = " abc abc ab x"
    assert [tokenizer.pieces[i] for i in tokenizer.encode(" abc x")] == [b" abc", b" ", b"x"]
    assert tokens_per_word(tokenizer, text)[:2] == [1, 1]
    assert tokens_per_word(tokenizer, text)[-1] == 1  # the space is a token of its own
    quality = measure(tokenizer, {"a": [text], "b": [" abc"]})
    ids = [*tokenizer.encode(text), *tokenizer.encode(" abc")]
    assert (quality.tokens, quality.bytes, quality.words) == (len(ids), 17, 5)
    assert quality.bytes_per_token == 17 / len(ids)
    assert quality.bytes_per_token_by_source == {"a": 13 / (len(ids) - 1), "b": 4}
    assert quality.vocabulary_used == len(set(ids)) / tokenizer.vocab_size
    assert (quality.texts_changed, quality.unknown, quality.stress_lost) == (0, 0, ())
    assert pieces[b" abc"] in ids


def test_tokens_of_each_word_are_those_that_touch_it() -> None:
    tokenizer = train_bpe(TEXTS, BPESpec(vocab_size=400))
    text = " ".join(TEXTS[:8])
    spans, whole = tokenizer.encode_with_spans(text)[1], tokens_per_word(tokenizer, text)
    place, expected = 0, []
    for word in text.split():
        place = text.index(word, place)
        stop = place + len(word)
        expected.append(sum(a < stop and b > place for a, b in spans))
        place = stop
    assert whole == expected


def test_renyi_efficiency() -> None:
    assert renyi_efficiency(np.full(8, 5)) == pytest.approx(1)
    assert renyi_efficiency(np.array([9, 0, 0, 0])) == pytest.approx(0)
    # H_2.5 of (3/4, 1/4): log(0.75^2.5 + 0.25^2.5) / -1.5
    assert renyi_efficiency(np.array([3, 1])) == pytest.approx(
        np.log(0.75**2.5 + 0.25**2.5) / -1.5 / np.log(2)
    )


def test_what_is_lost_is_seen() -> None:
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers

    inner = Inner(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["</s>"])
    quality = measure(Tokenizer(inner), {"x": ["a b c", "a"]})
    assert (quality.unknown, quality.texts_changed) == (1, 0.5)
    assert set(quality.stress_lost) >= {"emoji", "white space"}
