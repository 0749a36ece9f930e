"""Fine-tuning on conversations, as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_folders import assert_same_run, events, result

from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError
from llm.data.bpe import train_bpe
from llm.data.specs import PackedSpec, PaddedSpec, SourceSpec, TokenizerSpec
from llm.generate.chat import converse
from llm.generate.language_model import load, save_hf
from llm.generate.specs import Sampling
from llm.hub.new_rows import read_with_new_rows
from llm.models.cache import KVCache
from llm.models.specs import GPTSpec, LlamaSpec, LoRASpec
from llm.report.specs import TrackerSpec
from llm.train.experiment import CheckpointSpec, EvalSpec, ExperimentSpec, SamplesSpec
from llm.train.next_token import NextToken, embedding_noise
from llm.train.optimizer_specs import AdamWSpec
from llm.train.run import run
from llm.train.schedules import ConstantSpec
from llm.train.supervised_specs import SFTSpec


def conversation(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "for x in " * (number % 3) + f"{number} = 1"},
            {"role": "assistant", "content": "self : " * (1 + number % 4) + "return"},
        ]
    }


@pytest.fixture
def sft(tiny: Path, trained_run: Path, tmp_path: Path):
    """Builds the spec of a fine-tuning of the tiny GPT; keywords replace parts of it."""
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(conversation(n)) + "\n" for n in range(60)))

    def build(padded: bool = False, **changes: Any) -> ExperimentSpec:
        data = {
            "source": "jsonl", "path": str(chats), "seq_len": 64, "batch_size": 4,
            "eval_fraction": 0.1, "cache_dir": str(tiny / "cache"),
        } | changes.pop("data", {})  # fmt: skip
        trainer = {
            "steps": 8, "optimizer": AdamWSpec(lr=3e-3), "questions": 4,
            "schedule": ConstantSpec(warmup_steps=0), "preview": 0,
        } | changes.pop("trainer", {})  # fmt: skip
        parts = {
            "name": "tiny",
            "init_from": str(trained_run),
            "model": GPTSpec(max_seq_len=64, n_layers=1, d_model=16, n_heads=2),
            "hardware": HardwareSpec(
                device="cpu", peak_tflops=0.1, compilation_cache=str(tiny / "xla")
            ),
            "eval": EvalSpec(every=4),
            "checkpoint": CheckpointSpec(every=4),
            "samples": SamplesSpec(every=None, prompts=[]),
            "tracker": TrackerSpec(mode="disabled"),
        } | changes
        kind = PaddedSpec if padded else PackedSpec
        return ExperimentSpec(data=kind(**data), trainer=SFTSpec(**trainer), **parts)

    return build


def test_follows_a_run_in_torch(sft, trained_run: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    from llm.data.chat_template import CHATML
    from llm.data.conversations import ChatSettings

    steps = 50
    experiment = sft(
        padded=True,
        trainer={"steps": steps, "optimizer": AdamWSpec(lr=3e-3, b2=0.999, weight_decay=0.0)},
        data={"batch_size": 3},
        eval=EvalSpec(every=1000),
    )
    lm = load(str(trained_run))
    save_hf(lm, str(tmp_path / "hf"))
    data = experiment.data.build(seed=0, tokenizer=lm.tokenizer, chat=ChatSettings(CHATML))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.999), weight_decay=0.0)
    expected = []
    for step in range(steps):
        batch = {k: torch.tensor(v).long() for k, v in data.batch(step).items()}
        logits = model(batch["tokens"], attention_mask=batch["segment_ids"]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].flatten(), reduction="none"
        )
        mask = batch["loss_mask"].flatten()
        loss = (losses * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        expected.append((loss.item(), norm.item()))
    run(experiment, tmp_path / "run")
    found = [e for e in events(tmp_path / "run") if "train/loss" in e]
    ours = [(event["train/loss"], event["train/grad_norm"]) for event in found]
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
    assert expected[-1][0] < expected[0][0] / 2


def test_packed_padded_and_micro_batches_give_the_same_loss(sft, tmp_path: Path) -> None:
    losses = []
    for name, changes in {
        "packed": {},
        "padded": {"padded": True},
        "longer rows": {"padded": True, "data": {"buckets": [64]}},
        "other order": {"seed": 5},
    }.items():
        run(sft(trainer={"steps": 1}, **changes), tmp_path / name)
        losses.append(events(tmp_path / name)[0]["eval/loss"])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_micro_batches_equal_the_whole_batch(sft, tiny: Path, tmp_path: Path) -> None:
    whole = sft(padded=True)
    hardware = whole.hardware.replace(micro_batch=1)
    run(whole, tmp_path / "whole")
    run(whole.replace(hardware=hardware), tmp_path / "split")
    for one, other in zip(events(tmp_path / "whole"), events(tmp_path / "split"), strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_resumed_equals_unbroken(sft, tmp_path: Path, padded: bool) -> None:
    experiment = sft(padded=padded, trainer={"neftune_alpha": 5.0, "label_smoothing": 0.1})
    run(experiment, tmp_path / "unbroken")
    half = experiment.trainer.replace(steps=4)
    run(experiment.replace(trainer=half), tmp_path / "broken")
    run(experiment.replace(resume="true"), tmp_path / "broken")
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


def test_answers_held_out_questions(sft, tmp_path: Path) -> None:
    samples = SamplesSpec(every=60, max_new_tokens=16, temperature=0.0, prompts=["for x in 7 = 1"])
    trainer = {"steps": 120, "questions": 100}
    run(sft(samples=samples, trainer=trainer, data={"eval_fraction": 0.4}), tmp_path / "run")
    scores = [e["eval/exact_match"] for e in events(tmp_path / "run") if "eval/exact_match" in e]
    assert len(scores) == 3 and scores[0] < scores[-1]  # before training, on the way, at the end
    text = (tmp_path / "run" / "samples" / "step-000120.txt").read_text()
    asked = text.count("--- reference")
    assert text.count("--- completion") == asked + 1
    pairs = [block.split(" ---\n") for block in text.split("--- completion")[2:]]
    texts = [[part.split("\n\n---")[0].strip() for part in pair[1:3]] for pair in pairs]
    assert len(texts) == asked > 10
    right = sum(completion == reference for completion, reference in texts)
    assert scores[-1] == right / asked > 0
    assert result(tmp_path / "run")["final"]["eval/exact_match"] == scores[-1]
    assert "<|im_start|>assistant" in text


def test_the_run_can_be_talked_with_and_given_away(sft, tmp_path: Path) -> None:
    import transformers

    run(sft(), tmp_path / "run")
    lm = load(str(tmp_path / "run"))
    end = lm.tokenizer.special_ids["<|im_end|>"]
    assert lm.stop_ids == (end, lm.tokenizer.separator_id)
    chat = converse(lm, sampling=Sampling(max_new_tokens=4, temperature=0.0))
    assert isinstance("".join(chat.ask("for x in")), str)
    save_hf(lm, str(tmp_path / "hf"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = conversation(3)["messages"]
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert text.startswith("<|im_start|>user\n3 = 1<|im_end|>\n<|im_start|>assistant\nself")
    assert theirs.eos_token == "<|im_end|>"
    again = load(str(tmp_path / "hf"))
    assert again.chat_template is not None
    # A run that goes on from here keeps the template, whatever it trains.
    run(sft(init_from=str(tmp_path / "run"), trainer={"steps": 1}), tmp_path / "next")
    assert load(str(tmp_path / "next")).chat_template == lm.chat_template


def test_a_template_from_a_file(sft, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
        "{% if m.role == 'assistant' %}<|stop|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    experiment = sft(trainer={"template": str(template)})
    run(experiment, tmp_path / "run")
    lm = load(str(tmp_path / "run"))
    assert lm.chat_template == template.read_text()
    assert lm.stop_ids[0] == lm.tokenizer.special_ids["<|stop|>"]
    assert lm.spec.vocab_size == lm.tokenizer.vocab_size
    template.unlink()  # the run has its own copy
    longer = experiment.trainer.replace(steps=10)
    run(experiment.replace(trainer=longer, resume="true"), tmp_path / "run")
    with pytest.raises(RefusedError, match=r"template=.*mine.jinja: cannot be read"):
        run(experiment, tmp_path / "other")


def test_a_template_that_does_not_train_the_end_of_a_turn_is_told(
    sft, tmp_path: Path, said
) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>{% endfor %}"
    )
    run(sft(trainer={"template": str(template), "steps": 1}), tmp_path / "run")
    told = "will not learn to stop there. (Is it outside of {% generation %}?)"
    assert any(told in line for line in said)
    lm = load(str(tmp_path / "run"))
    assert lm.stop_ids == (lm.tokenizer.separator_id,)


def test_new_tokens_begin_as_the_average(trained_run: Path) -> None:
    lm = load(str(trained_run))
    read, old = lm.pretrained.weights, lm.spec.vocab
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lm.params)
    grown = {**template, "embedding": jax.ShapeDtypeStruct((old + 3, 16), jnp.float32)}
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=single), grown)
    params = read_with_new_rows(read, placed, old, (old, old + 1, old + 2))
    table, before = np.asarray(params["embedding"]), np.asarray(lm.params["embedding"])
    np.testing.assert_array_equal(table[:old], before)
    np.testing.assert_allclose(table[old:], np.tile(before.mean(0), (3, 1)), rtol=1e-5, atol=1e-7)
    # A row that is stored but that no token used is begun anew too.
    same = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=single), template)
    params = read_with_new_rows(read, same, old, (old - 1,))
    table = np.asarray(params["embedding"])
    np.testing.assert_array_equal(table[:-1], before[:-1])
    np.testing.assert_allclose(table[-1], before[:-1].mean(0), rtol=1e-5, atol=1e-7)


def test_a_model_without_the_tokens_of_chatml_gets_them(tiny: Path, sft, tmp_path: Path) -> None:
    from llm.train.schedules import WarmupCosineSpec
    from llm.train.supervised_specs import PretrainSpec

    corpus = [path.read_text() for path in (tiny / "corpus").glob("*.txt")]
    spec = TokenizerSpec(vocab_size=300, special_tokens=["</s>"])
    (tmp_path / "tokenizer.json").write_text(train_bpe(corpus, spec).to_hf_json())
    base = sft(
        init_from=None,
        data={
            "source": "text", "path": str(tiny / "corpus"), "seq_len": 32,
            "tokenizer": TokenizerSpec(path=str(tmp_path / "tokenizer.json")),
        },
    )  # fmt: skip
    trainer = PretrainSpec(steps=4, schedule=WarmupCosineSpec(warmup_steps=1))
    run(base.replace(trainer=trainer), tmp_path / "base")
    before = load(str(tmp_path / "base"))
    adapted = sft(init_from=str(tmp_path / "base"))
    adapted = adapted.replace(model=adapted.model.replace(lora=LoRASpec(rank=2)))
    with pytest.raises(RefusedError, match=r"2 special tokens that .* lacks, and adapters"):
        run(adapted, tmp_path / "adapted")
    run(sft(init_from=str(tmp_path / "base")), tmp_path / "run")
    after = load(str(tmp_path / "run"))
    assert after.spec.vocab == before.spec.vocab + 2
    assert after.stop_ids[0] == after.tokenizer.special_ids["<|im_end|>"] >= before.spec.vocab
    assert after.tokenizer.separator == "</s>"
    run(
        sft(init_from=str(tmp_path / "base"), resume="true", trainer={"steps": 9}), tmp_path / "run"
    )


def test_each_source_of_a_mixture_is_evaluated(sft, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    mixture = [
        SourceSpec(source="jsonl", path=str(chats)),
        SourceSpec(source="task", path="addition", max_documents=100),
    ]
    data = {"source": "stdlib", "path": None, "mixture": mixture, "eval_fraction": 0.2}
    run(sft(data=data), tmp_path / "run")
    first = events(tmp_path / "run")[0]
    names = {"eval/chats.jsonl/loss", "eval/task:addition/loss"}
    assert names < set(first)
    low, high = sorted(first[name] for name in names)
    assert low < first["eval/loss"] < high


def test_where_fine_tuning_starts(sft, tmp_path: Path) -> None:
    published = LlamaSpec(pretrained=["hf:somebody/something"], vocab_size=None)
    assert sft(init_from=None, model=published).first_weights == ("hf:somebody/something",)
    assert sft(init_from="scratch", model=published).first_weights is None
    assert sft(init_from=None).first_weights is None
    run(sft(init_from="scratch", data={"tokenizer": TokenizerSpec(vocab_size=300)}), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "run.json").read_text())["parent"] is None


def test_noise_on_embeddings() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    segments = jnp.array([[1] * 4 + [2] * 10 + [0] * 2, [1] * 16])
    noise = np.asarray(embedding_noise(keys, segments, 64, 5.0))
    for (row, first, last), length in {(0, 0, 4): 4, (0, 4, 14): 10, (1, 0, 16): 16}.items():
        bound = 5.0 / np.sqrt(length * 64)
        part = noise[row, first:last]
        assert 0.95 * bound < np.abs(part).max() <= bound
        assert abs(part.mean()) < 0.1 * bound
        np.testing.assert_allclose(part.std(), bound / np.sqrt(3), rtol=0.1)
    again = embedding_noise(keys[1:], segments[1:], 64, 5.0)
    np.testing.assert_array_equal(again[0], noise[1])  # a row's noise is its own


def test_noise_only_while_training() -> None:
    spec = GPTSpec(max_seq_len=16, n_layers=1, d_model=16, n_heads=2, vocab_size=40)
    model = spec.build(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 40)
    batch = {
        "tokens": tokens, "targets": tokens, "segment_ids": jnp.ones_like(tokens),
        "positions": jnp.tile(jnp.arange(16), (2, 1)), "loss_mask": jnp.ones_like(tokens),
    }  # fmt: skip
    keys = jax.random.split(jax.random.key(2), 2)
    plain, noisy = NextToken(8), NextToken(8, noise_alpha=5.0)
    without = float(plain(model, batch, None).objective)
    assert float(noisy(model, batch, None).objective) == without
    assert float(plain(model, batch, keys).objective) == without
    assert float(noisy(model, batch, keys).objective) != without
    cache = KVCache.create(spec, 2, 16)
    with pytest.raises(ValueError, match="embedding_noise_BTD: for whole rows"):
        model(tokens, cache=cache, embedding_noise_BTD=jnp.zeros((2, 16, 16)))
