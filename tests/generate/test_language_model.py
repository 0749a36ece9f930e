"""llm.load on a trained run: text in, text out; ids in, ids out."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import llm
from llm.core.spec import RefusedError

N = 12


@pytest.fixture(scope="module")
def lm(trained_run: Path) -> llm.LanguageModel:
    return llm.load(str(trained_run))


def test_text_in_text_out(lm: llm.LanguageModel) -> None:
    """A text is what begins a document, an empty one just its start."""
    start, encode, decode = lm.tokenizer.start_id, lm.tokenizer.encode, lm.tokenizer.decode
    texts = lm.generate(["def", ""], max_new_tokens=N, temperature=0.0)
    ids = lm.generate([[start, *encode("def")], [start]], max_new_tokens=N, temperature=0.0)
    assert texts == [decode(row) for row in ids]
    assert all(isinstance(text, str) and text for text in texts)


def test_without_stop_runs_to_the_end(lm: llm.LanguageModel) -> None:
    """And with it at the token between documents, which soon comes up in one of many rows."""
    settings = {"max_new_tokens": 24, "temperature": 3.0, "seed": 1}
    free = lm.generate([[5]] * 64, **settings, stop=False)
    stopped = lm.generate([[5]] * 64, **settings)
    assert all(len(row) == 24 for row in free)
    assert all(isinstance(token, int) for row in free for token in row)
    end = lm.tokenizer.separator_id
    assert any(end in row for row in free)
    for row, whole in zip(stopped, free, strict=True):
        assert row == (whole[: whole.index(end) + 1] if end in whole else whole)


def test_logits(lm: llm.LanguageModel) -> None:
    ids_BT = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    logits_BTV = lm.logits(ids_BT)
    assert isinstance(logits_BTV, np.ndarray)
    assert logits_BTV.shape == (2, 4, lm.spec.vocab)
    assert logits_BTV.dtype == np.float32
    # Causal: what comes later changes nothing.
    np.testing.assert_allclose(lm.logits(ids_BT[:, :2]), logits_BTV[:, :2], rtol=1e-4, atol=1e-5)
    greedy = lm.generate(ids_BT.tolist(), max_new_tokens=1, temperature=0.0, stop=False)
    assert [row[0] for row in greedy] == logits_BTV[:, -1].argmax(-1).tolist()


def test_has_learned_its_corpus(lm: llm.LanguageModel) -> None:
    """What it was trained on is likelier than the same tokens in another order."""
    ids = lm.tokenizer.encode(" self return for in import x = 1 : def self return")
    shuffled = np.random.default_rng(0).permutation(ids).tolist()

    def log_likelihood(ids: list[int]) -> float:
        logits_TV = lm.logits([ids])[0]
        log_z_T = np.log(np.exp(logits_TV).sum(-1))
        return float(sum(logits_TV[t, ids[t + 1]] - log_z_T[t] for t in range(len(ids) - 1)))

    assert log_likelihood(ids) > log_likelihood(shuffled)


def test_refused(lm: llm.LanguageModel) -> None:
    vocabulary = lm.spec.vocab
    with pytest.raises(RefusedError, match=f"token {vocabulary}: the model has tokens 0 to"):
        lm.logits([[0, vocabulary]])
    with pytest.raises(RefusedError, match="takes a list of prompts"):
        lm.generate("def")
    with pytest.raises(ValueError, match="65 tokens: the model sees 64 at most"):
        lm.logits([[0] * 65])
    # As without the tests' checks of types.
    logits, generate = inspect.unwrap(type(lm).logits), inspect.unwrap(type(lm).generate)
    for ids in ([1, 2, 3], [[1, 2], [3]], [[1.5, 2.0]], [["a"]]):
        with pytest.raises(RefusedError, match="expected integers"):
            logits(lm, ids)
    for prompts in ([[1.5]], [[[1]]], [[[1], [2, 3]]], [3]):
        with pytest.raises(RefusedError, match="expected a list of texts, or of lists of ids"):
            generate(lm, prompts)
    with pytest.raises(RefusedError, match="every prompt needs at least one token"):
        lm.generate(np.zeros((0, 3), int))
    with pytest.raises(RefusedError, match="n=0: expected at least 1"):
        lm.generate(["def"], n=0)
    with pytest.raises(RefusedError, match="stop=ab: expected true, false or a list of texts"):
        lm.generate(["def"], stop="ab")
    with pytest.raises(RefusedError, match="dtype=fp16: expected float32 or bfloat16"):
        llm.load(lm.pretrained, dtype="fp16")


def test_arrays_and_paths_are_taken(lm: llm.LanguageModel, trained_run: Path) -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    settings = {"max_new_tokens": N, "temperature": 0.0}
    assert lm.generate(ids, **settings) == lm.generate(ids.tolist(), **settings)
    assert (llm.load(trained_run).logits(ids) == lm.logits(ids)).all()


def test_stop_strings(lm: llm.LanguageModel) -> None:
    settings = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}
    (free,) = lm.generate(["def"], **settings, stop=False)
    string = free[7:10]
    at = free.find(string)
    assert lm.generate(["def"], **settings, stop=[string]) == [free[:at]]
    start = [lm.tokenizer.start_id, *lm.tokenizer.encode("def")]
    (ids,) = lm.generate([start], **settings, stop=[string])
    assert string in lm.tokenizer.decode(ids) and string not in lm.tokenizer.decode(ids[:-1])
    with pytest.raises(RefusedError, match="expected true, false or a list of texts"):
        lm.generate(["def"], stop=[""])


def test_samples_of_each_prompt(lm: llm.LanguageModel) -> None:
    texts = lm.generate(["def", "self"], n=3, max_new_tokens=N, seed=2)
    assert [len(row) for row in texts] == [3, 3]
    assert [row[0] for row in texts] == lm.generate(["def", "self"], max_new_tokens=N, seed=2)
