"""Losses of texts beside transformers' recipe and computations by hand."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from llm.data.bpe import build_tokenizer
from llm.data.chat_template import CHATML
from llm.data.conversations import ChatSettings
from llm.data.sources import open_source
from llm.data.specs import SourceSpec, TokenizerSpec
from llm.eval.scorer import Scorer
from llm.eval.text_loss import TextLoss, documents, merged, read_corpora, text_loss
from llm.generate.engine import Engine
from llm.generate.language_model import LanguageModel, save_hf
from llm.models.parameter import parameters

TEXTS = ["héllo wörld " * 9, "x = 1\n", "for x in self: return x\n" * 30, "日本語 text"]


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def corpora(path: Path, tokenizer, tiny: Path, split: str = "all", fraction: float = 0.3):
    source = SourceSpec(source="jsonl", path=str(path))
    return read_corpora(
        [source], tokenizer, split=split, eval_fraction=fraction, cache_dir=tiny / "cache"
    )


def recipe(model, ids: list[int], max_length: int, stride: int) -> tuple[float, list[float]]:
    """The strided perplexity of transformers' documentation, and the mean loss of each window."""
    losses, weighted, counted, before = [], 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        window = torch.tensor([ids[begin:end]])
        labels = window.clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(window, labels=labels).loss.item()
        n = int((labels != -100).sum()) - 1
        losses.append(loss)
        weighted, counted, before = weighted + n * loss, counted + n, end
        if end == len(ids):
            break
    return math.exp(weighted / counted), losses


@pytest.mark.parametrize(("max_length", "stride"), [(33, 32), (33, 8)])
def test_strided_scores_equal_transformers_recipe(
    lm: LanguageModel, exported: Path, tiny: Path, corpus_file: Path, max_length: int, stride: int
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    (corpus,) = corpora(corpus_file, lm.tokenizer, tiny)
    (document,) = [d for d in documents(corpus) if d.number == 2]  # the longest
    assert len(document.ids) > 2 * max_length
    found: list[np.ndarray] = []
    scorer = Scorer(lm.engine, context=max_length - 1)
    ours = text_loss(
        scorer, iter([document]), stride=stride, sink=lambda _, log_probs: found.append(log_probs)
    )
    perplexity, losses = recipe(model, document.ids.tolist(), max_length, stride)
    # The windows one by one; the recipe gives each but the first a token too little weight.
    ends = [*range(max_length - 1, len(found[0]), stride), len(found[0])]
    parts = np.split(-found[0].astype(np.float64), ends[:-1])
    np.testing.assert_allclose([part.mean() for part in parts], losses, rtol=1e-5)
    weights = [len(parts[0]), *(len(part) - 1 for part in parts[1:])]
    theirs = math.exp(np.average([part.mean() for part in parts], weights=weights))
    assert theirs == pytest.approx(perplexity, rel=1e-5)
    assert ours.loss == pytest.approx(-found[0].astype(np.float64).mean(), rel=1e-9)


def test_bits_per_byte_by_hand_under_two_tokenizers(
    lm: LanguageModel, tiny: Path, corpus_file: Path
) -> None:
    """A uniform model of each vocabulary: log2(V) bits for each token, over the text's bytes."""
    source = open_source(SourceSpec(source="text", path=str(tiny / "corpus")), tiny / "cache")
    other = build_tokenizer(TokenizerSpec(vocab_size=270), [source], [1.0], tiny / "cache")
    size = sum(len(text.encode()) for text in TEXTS)
    assert size > sum(map(len, TEXTS))  # bytes are not characters
    for tokenizer, ends in [(lm.tokenizer, True), (other, True), (other, False)]:
        V = tokenizer.vocab_size
        spec = lm.spec.replace(vocab_size=V)
        params = jax.tree.map(np.zeros_like, parameters(spec.build(jax.random.key(0))))
        (corpus,) = corpora(corpus_file, tokenizer, tiny)
        scorer = Scorer(Engine(spec, params))
        found = text_loss(scorer, documents(corpus, ends=ends), stride=64)
        n = sum(len(tokenizer.encode(text)) + ends for text in TEXTS)
        assert found.tokens.sum() == n
        assert found.bytes.sum() == size
        assert found.bits_per_byte == pytest.approx(n * math.log2(V) / size, rel=1e-6)
        assert found.loss == pytest.approx(math.log(V), rel=1e-6)
        json_form = found.to_json()
        assert json_form["perplexity"] == pytest.approx(V, rel=1e-5)
        low, high = json_form["bits_per_byte_95"]
        assert low <= found.bits_per_byte <= high


def test_splits_and_samples(lm: LanguageModel, tiny: Path) -> None:
    def read(split: str):
        source = SourceSpec(source="text", path=str(tiny / "corpus"))
        (corpus,) = read_corpora(
            [source], lm.tokenizer, split=split, eval_fraction=0.1, cache_dir=tiny / "cache"
        )
        return corpus

    numbers = {s: {d.number for d in documents(read(s))} for s in ("held_out", "train", "all")}
    assert numbers["held_out"] and not numbers["held_out"] & numbers["train"]
    assert numbers["held_out"] | numbers["train"] == numbers["all"] == set(range(60))
    sample = [document.number for document in documents(read("all"), limit=5)]
    assert len(sample) == 5 and sample == sorted(sample)
    assert sample == [document.number for document in documents(read("all"), limit=5)]
    scorer = Scorer(lm.engine)
    parts = [text_loss(scorer, documents(read(s)), stride=64) for s in ("held_out", "train")]
    whole = text_loss(scorer, documents(read("all")), stride=64)
    assert merged(parts).loss == pytest.approx(whole.loss, rel=1e-6)


def test_two_sources_of_one_name_both_count(lm: LanguageModel, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"question": "def self", "body": "return x and y"}\n')
    name = f"jsonl:{path}"
    found = read_corpora(
        [SourceSpec(source="jsonl", path=str(path), text_field=f) for f in ("question", "body")],
        lm.tokenizer, split="all", eval_fraction=0.1, cache_dir=tiny / "cache",
    )  # fmt: skip
    assert [corpus.name for corpus in found] == [name, f"{name} #2"]
    assert [d.corpus for corpus in found for d in documents(corpus)] == [name, f"{name} #2"]
    sizes = [d.bytes for corpus in found for d in documents(corpus)]
    assert sizes == [len("def self"), len("return x and y")]


def test_of_conversations_the_answers_count(lm: LanguageModel, tiny: Path, tmp_path: Path) -> None:
    answers = ["return x", "日本"]
    path = tmp_path / "chats.jsonl"
    turns = [
        {"messages": [{"role": "user", "content": "def self"}, {"role": "assistant", "content": a}]}
        for a in answers
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in turns))
    (corpus,) = read_corpora(
        [SourceSpec(source="jsonl", path=str(path))], lm.tokenizer, split="all", eval_fraction=0.1,
        cache_dir=tiny / "cache", chat=ChatSettings(CHATML, end="<|im_end|>"),
    )  # fmt: skip
    found = text_loss(Scorer(lm.engine), documents(corpus), stride=64)
    assert found.bytes.tolist() == [len(answer.encode()) for answer in answers]
    n = [len(lm.tokenizer.encode(answer)) + 1 for answer in answers]  # and the end of the turn
    assert found.tokens.tolist() == n


@pytest.fixture(scope="module")
def exported(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    save_hf(lm, folder)
    return folder


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_loss_that_is_no_number_has_no_interval(nats: float) -> None:
    ones = np.ones(3, int)
    found = TextLoss(np.array([1.0, nats, 2.0]), ones, ones).to_json()
    assert not any(map(math.isfinite, (found["loss"], found["perplexity"], found["bits_per_byte"])))
    assert found["loss_95"] is found["bits_per_byte_95"] is None and found["documents"] == 3
