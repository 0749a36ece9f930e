import random

import numpy as np
import pytest

from llm.core.spec import RefusedError
from llm.data.bpe import build_tokenizer, train_bpe
from llm.data.passages import Passages
from llm.data.sources import open_source
from llm.data.specs import SourceSpec, TokenizerSpec
from llm.data.tokenizer import Tokenizer, split_long

TEXT = "def main(argv):\n    for x in range(1000):\n        print(x, 'naïve 数据 🙂')\n\n\n" * 50
STRESS = [
    "",
    " ",
    "\n\n\r\n\t\x00\x01\x7f\u0085\u2028\ufeff",
    "e\u0301 é ﬁ ﷽ İ ß \u200b\u200d\u202e",
    "👩‍👩‍👧‍👦🏳️‍🌈 \U0010ffff \ufffd \ue000",
    "<|endoftext|> and <|im_start|>user",
    "中文 日本語 한국어 العربية עברית हिन्दी ไทย",
    "   leading and trailing   \n    ",
    "1234567890 3.14159 1e-5 0xFFFF",
    "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000, 7)])),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT], TokenizerSpec(vocab_size=500))


@pytest.fixture(scope="module")
def sentencepiece_like():
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    words = ["<unk>", "<s>", "</s>", "▁hello", "▁wor", "ld", "▁", *"abé"]
    vocab = {w: n for n, w in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256))])}
    inner = Inner(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    inner.normalizer = normalizers.Sequence([])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.add_special_tokens([AddedToken(w, special=True) for w in ("<s>", "</s>")])
    return Tokenizer(inner)


@pytest.mark.parametrize("text", STRESS)
def test_any_unicode_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert b"".join(tokenizer.pieces[i] for i in ids) == text.encode()


def test_random_unicode_comes_back_and_streams(tokenizer):
    rng = random.Random(0)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    for _ in range(50):
        text = "".join(map(chr, rng.choices(points, k=rng.randint(1, 60))))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        stream = tokenizer.decode_stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_every_byte_has_a_token(tokenizer):
    single = {piece for piece in tokenizer.pieces if piece is not None and len(piece) == 1}
    assert len(single) == 256


def test_special_tokens_by_name(tokenizer):
    assert list(tokenizer.special_ids) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.separator == "<|endoftext|>"
    assert tokenizer.separator_id == tokenizer.start_id == tokenizer.special_ids["<|endoftext|>"]
    text = "a<|endoftext|>b"
    assert tokenizer.separator_id not in tokenizer.encode(text)
    ids = tokenizer.encode(text, specials=True)
    assert ids.count(tokenizer.separator_id) == 1
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_specials=False) == text
    assert tokenizer.token_bytes[tokenizer.separator_id] == 0
    for skip in (True, False):
        stream = tokenizer.decode_stream(skip_specials=skip)
        assert "".join(map(stream.push, ids)) == ("ab" if skip else text)


def test_stream_shows_no_half_characters(tokenizer):
    table = {piece: index for index, piece in enumerate(tokenizer.pieces)}
    euro = [table[bytes([byte])] for byte in "€".encode()]
    stream = tokenizer.decode_stream()
    assert [stream.push(index) for index in euro] == ["", "", "€"]
    assert stream.push(euro[0]) == ""
    assert stream.push(tokenizer.separator_id) == "\ufffd"
    assert stream.push(euro[0]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(tokenizer.vocab_size + 5) == ""


def test_training_is_deterministic_and_json_round_trips(tokenizer):
    again = train_bpe([TEXT], TokenizerSpec(vocab_size=500))
    assert again.fingerprint == tokenizer.fingerprint
    copy = Tokenizer.from_json(tokenizer.to_json())
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode(TEXT) == tokenizer.encode(TEXT)
    assert copy.vocab_size == tokenizer.vocab_size == len(tokenizer.token_bytes)
    other = train_bpe([TEXT], TokenizerSpec(vocab_size=300))
    assert other.fingerprint != tokenizer.fingerprint


def test_load_from_file_and_folder(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_hf_json(), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert Tokenizer.load(str(path)).encode(TEXT) == tokenizer.encode(TEXT)
    assert Tokenizer.load(str(tmp_path), "<|im_end|>").separator == "<|im_end|>"
    with pytest.raises(RefusedError, match="no such special token"):
        Tokenizer.load(str(tmp_path), "<nope>")
    with pytest.raises(RefusedError, match=r"no tokenizer\.json"):
        Tokenizer.load(str(tmp_path / "nowhere"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RefusedError, match="not a readable tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_a_tokenizer_without_a_known_end_is_refused_unless_told():
    words = {"vocab_size": 300, "special_tokens": ["<doc>"]}
    with pytest.raises(
        RefusedError, match=r"special_tokens=\['<doc>'\]: none is known to end a text"
    ):
        TokenizerSpec(**words)
    told = TokenizerSpec(**words, separator="<doc>")
    assert train_bpe([TEXT], told).separator == "<doc>"


def test_start_of_text_token_opens_a_document():
    from tokenizers import processors

    spec = TokenizerSpec(vocab_size=300, special_tokens=["<|end_of_text|>", "<begin>"])
    tokenizer = train_bpe([TEXT], spec)
    assert tokenizer.start_id == tokenizer.separator_id
    begin = tokenizer.special_ids["<begin>"]
    tokenizer._inner.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", begin)]
    )
    assert Tokenizer.from_json(tokenizer.to_json()).start_id == begin
    named = train_bpe([TEXT], spec.replace(special_tokens=["</s>", "<s>"]))
    assert named.start_id == named.special_ids["<s>"]


def test_sentencepiece_like(sentencepiece_like):
    tokenizer = sentencepiece_like
    assert not tokenizer.is_byte_level
    assert (tokenizer.separator, tokenizer.start_id) == ("</s>", 1)
    size = dict(zip(["▁hello", "ld", "▁", "é", "<0x0A>"], [6, 2, 1, 2, 1], strict=True))
    vocab = tokenizer._vocab
    assert {name: tokenizer.token_bytes[vocab[name]] for name in size} == size
    ids = [vocab["▁hello"], vocab["▁wor"], vocab["ld"], vocab["<0xC3>"], vocab["<0xA9>"]]
    stream = tokenizer.decode_stream()
    shown = [stream.push(i) for i in ids]
    assert "".join(shown) + stream.flush() == tokenizer.decode(ids) == " hello worldé"
    assert shown[-2:] == ["", "é"]


def test_truncation_and_padding_settings_are_ignored(tokenizer):
    inner = Tokenizer.from_json(tokenizer.to_json())._inner
    inner.enable_truncation(3)
    inner.enable_padding(length=10)
    fresh = Tokenizer(inner)
    assert fresh.encode(TEXT) == tokenizer.encode(TEXT)
    assert fresh.fingerprint == tokenizer.fingerprint


def test_split_long_cuts_between_words():
    text = ("word " * 500_000) + "x" * 1_500_000
    parts = split_long(text)
    assert "".join(parts) == text
    assert all(len(part) <= 2**20 for part in parts)
    assert parts[1].startswith(" word")
    assert split_long("short") == ["short"]
    assert split_long("") == [""]


def test_cutting_a_long_text_does_not_change_its_tokens(tokenizer, monkeypatch):
    from llm.data import tokenizer as module

    text = TEXT * 20
    whole = tokenizer.encode(text)
    monkeypatch.setattr(module, "_PART", 9000)
    assert len(module.split_long(text)) > 5
    assert tokenizer.encode(text) == whole


def test_sample_is_spread_evenly(tmp_path):
    for number in range(200):
        (tmp_path / f"{number:03}.txt").write_text(f"{number:03} " * 100)
    source = open_source(SourceSpec(source="text", path=str(tmp_path)), tmp_path)
    numbers = [int(passage[:3]) for passage in Passages([source], [1.0], source.size // 10)]
    assert len(numbers) == pytest.approx(20, abs=1)
    assert np.diff(numbers).max() <= 20
    for everything in (10**9, None):
        assert len(list(Passages([source], [1.0], everything))) == 200


def test_trained_tokenizers_are_cached_by_content(tmp_path, messages):
    (tmp_path / "a.txt").write_text(TEXT)
    source = open_source(SourceSpec(source="text", path=str(tmp_path / "a.txt")), tmp_path)
    spec = TokenizerSpec(vocab_size=300)
    prints = {build_tokenizer(spec, [source], [1.0], tmp_path).fingerprint for _ in range(2)}
    assert len(prints) == 1
    assert sum("training a tokenizer" in line for line in messages) == 1
    build_tokenizer(spec.replace(vocab_size=310), [source], [1.0], tmp_path)
    assert sum("training a tokenizer" in line for line in messages) == 2


def test_a_small_text_says_that_the_vocabulary_is_small(messages):
    tokenizer = train_bpe(["abc"], TokenizerSpec(vocab_size=5000))
    assert tokenizer.vocab_size == 259
    assert any("too few repetitions" in line for line in messages)
