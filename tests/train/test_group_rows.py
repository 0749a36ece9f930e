"""Groups as rows that share their prompt, against a row for each answer."""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import jax
import numpy as np
import pytest

from llm.generate.batch import Completion
from llm.models.binding import bind
from llm.models.parameter import parameters
from llm.models.specs import GPTSpec, LlamaSpec
from llm.train.grpo.groups import Group
from llm.train.grpo.layout import BatchMaker
from llm.train.grpo.policy_gradient import PolicyGradient
from llm.train.grpo.spec import LOSSES, GRPOSpec

GPT = GPTSpec(vocab_size=40, max_seq_len=64, n_layers=2, d_model=16, n_heads=2)
LLAMA = LlamaSpec(
    vocab_size=40, max_seq_len=64, n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_mlp=24,
    rope_theta=100.0,
)  # fmt: skip


def groups_of(seed: int, count: int = 5, samples: int = 4, longest: int = 12) -> list[Group]:
    """Prompts and answers of 1 to `longest` tokens."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        lengths = rng.integers(1, longest + 1, samples)
        answers = [
            Completion(rng.integers(0, 40, n).tolist(), rng.standard_normal(n).astype("f4"), True)
            for n in lengths
        ]
        rewards = rng.standard_normal(samples).tolist()
        old = [a.log_probs - np.float32(3.5) for a in answers]  # as likely as a random model has it
        prompt = rng.integers(0, 40, rng.integers(1, longest + 1)).tolist()
        groups.append(
            Group(
                prompt, "?", answers, [""] * samples, rewards, {"r": rewards}, rewards,
                scores={"old_log_probs": old, "reference_log_probs": old},
            )
        )  # fmt: skip
    return groups


def groups_alike(seed: int, count: int = 6, samples: int = 6, longest: int = 10) -> list[Group]:
    """The same, of texts that begin alike: a common beginning, few tokens, a prompt that is there
    twice and one with which others begin."""
    rng = np.random.default_rng(seed)
    groups = groups_of(seed, count, samples, longest)
    for group in groups:
        group.prompt = [7, 8, 9, *rng.integers(0, 2, rng.integers(1, 4)).tolist()]
        group.answers = [
            dataclasses.replace(answer, ids=rng.integers(0, 2, len(answer.ids)).tolist())
            for answer in group.answers
        ]
    groups[1].prompt = list(groups[0].prompt)
    groups[2].prompt = groups[0].prompt[:4]
    return groups


MAKE = pytest.mark.parametrize("make_groups", [groups_of, groups_alike])


def maker(
    spec: GRPOSpec, T: int, at_once: int, *, share: bool, rows: int = 20, size: int = 5
) -> BatchMaker:
    return BatchMaker(spec, size, (T,), rows=rows, rows_at_once=at_once, share_prompts=share)


def objective_of(spec: GRPOSpec) -> PolicyGradient:
    return spec.replace(temperature=0.8).objective(32)


@cache
def weights(model):
    params = parameters(model.build(jax.random.key(0)))
    return jax.tree.map(lambda p: 4 * p, params)  # no two tokens alike


@partial(jax.jit, static_argnums=(0, 1, 2))
def compiled(model, spec: GRPOSpec, attention: str, params, batch):
    def of(params):
        sums = objective_of(spec)(bind(model, params, attention=attention), batch, None)
        return sums.objective / sums.divisor, sums

    return jax.value_and_grad(of, has_aux=True)(params)


def gradients(model, spec: GRPOSpec, batch: dict[str, np.ndarray], attention: str = "xla"):
    (loss, sums), grads = compiled(model, spec, attention, weights(model), batch)
    return loss, sums, grads


def assert_same(one, other, tolerance: float = 2e-5) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        scale = max(float(np.abs(b).max()), 1e-3)
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize(
    ("model", "loss"), [(GPT, "grpo"), *((LLAMA, loss) for loss in LOSSES)],
    ids=lambda x: x if isinstance(x, str) else x.name,
)  # fmt: skip
@MAKE
def test_shared_prompts_change_nothing(model, loss: str, make_groups) -> None:
    spec = GRPOSpec(loss=loss, max_new_tokens=12, kl_weight=0.1, entropy_weight=0.01,
                    importance_cap=1.5)  # fmt: skip
    groups = make_groups(0)
    shared = maker(spec, 60, 5, share=True, rows=40)(groups)
    alone = maker(spec, 24, 5, share=False, rows=40)(groups)
    used = [int((b["segment_ids"] > 0).sum()) for b in (shared, alone)]
    assert used[0] < (0.8 if make_groups is groups_of else 0.45) * used[1]
    assert_same(gradients(model, spec, shared), gradients(model, spec, alone))


@pytest.mark.parametrize(("make_groups", "T"), [(groups_of, 60), (groups_alike, 60),
                                                (groups_alike, 200)])  # fmt: skip
def test_the_kernel_for_gpus_agrees(make_groups, T: int) -> None:
    spec = GRPOSpec(loss="dapo", max_new_tokens=12)
    model = LLAMA.replace(max_seq_len=256)
    batch = maker(spec, T, 5, share=True, rows=5)(make_groups(1, count=4 if T == 60 else 12))
    assert T == 60 or (batch["segment_ids"].sum(1) > 128).any()  # a third block of the kernel
    flash = gradients(model, spec, batch, "flash")
    assert_same(flash, gradients(model, spec, batch), 1e-4)


@pytest.mark.parametrize("T", [24, 25, 33, 64])
@MAKE
def test_groups_too_long_for_a_row_are_cut(T: int, make_groups) -> None:
    spec = GRPOSpec(loss="grpo", max_new_tokens=12)
    groups = make_groups(2)
    cut = maker(spec, T, 4, share=True, rows=40)(groups)
    assert (cut["segment_ids"] > 0).any(1).sum() >= (2 if T < 64 else 1)
    assert_same(gradients(LLAMA, spec, cut), gradients(LLAMA, spec, maker(
        spec, 24, 20, share=False, rows=40)(groups)))  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
@MAKE
def test_rows_are_full_and_not_more(seed: int, make_groups) -> None:
    """No row has more places, scored tokens or tokens than there is room for."""
    T = [16, 24, 40, 200][seed % 4]
    groups = make_groups(seed, samples=2 + seed % 7 * 5, longest=6)
    answers = sum(len(group.answers) for group in groups)
    spec = GRPOSpec(max_new_tokens=6)
    batch = maker(spec, T, 1, share=True, rows=answers)(groups)
    places, tokens = batch["segment_ids"].sum(1), (batch["sequence_ids"] > 0).sum(1)
    assert tokens.sum() == sum(len(a.ids) for group in groups for a in group.answers)
    for row in range(answers):  # what is not filled says so
        assert not batch["positions"][row, places[row] :].any()
        assert not batch["targets"][row, batch["counts"][row] :].any()
        assert (batch["ends"][row, : places[row]] <= places[row]).all()
        assert (batch["places"][row] <= max(places[row] - 1, 0)).all()
    if make_groups is groups_of:  # first fit leaves no two rows that would have room in one
        taken = np.maximum(np.maximum(places, batch["counts"]), -(-tokens // 4))
        least = np.sort(taken[taken > 0])
        assert len(least) < 2 or least[0] + least[1] > T


@pytest.mark.parametrize("at_once", [1, 4, 5, 20])
def test_filled_rows_are_the_first_micro_batches(at_once: int) -> None:
    spec = GRPOSpec(max_new_tokens=12)
    batch = maker(spec, 40, at_once, share=True)(groups_of(3))
    n = 20 // at_once
    filled = (batch["segment_ids"] > 0).any(1)
    by_micro_batch = np.array([filled[i::n].any() for i in range(n)])
    assert by_micro_batch[: -(-filled.sum() // at_once)].all()
    assert not by_micro_batch[-(-filled.sum() // at_once) :].any()
    assert batch["divisor"].sum() == 20


def test_answers_without_gradient_take_no_row_but_count() -> None:
    groups = groups_of(4)
    for group in groups[1:]:
        group.advantages = [0.0] * 4
    spec = GRPOSpec(max_new_tokens=12)
    batch = maker(spec, 60, 20, share=True)(groups)
    assert (batch["segment_ids"] > 0).any(1).sum() == 1
    assert batch["divisor"].sum() == 20
    with_entropy = maker(spec.replace(entropy_weight=0.1), 60, 20, share=True)(groups)
    assert (with_entropy["segment_ids"] > 0).any(1).sum() > 1
    skipped, *_ = gradients(LLAMA, spec, batch)
    whole, *_ = gradients(LLAMA, spec, maker(spec.replace(entropy_weight=1e-9), 60, 20, share=True)(
        groups))  # fmt: skip
    np.testing.assert_allclose(skipped, whole, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_few_groups_make_a_small_update(loss: str) -> None:
    """As if the others of the batch were there, and said nothing."""
    spec = GRPOSpec(loss=loss, max_new_tokens=12)
    groups = groups_of(8, count=4)
    for group in groups[1:]:
        group.advantages = [0.0] * 4
        group.answers = groups[0].answers  # of the same lengths, which are what some losses count
    whole = maker(spec, 60, 20, share=True, size=4)(groups)
    few = maker(spec, 60, 20, share=True, size=4)(groups[:1])
    assert whole["divisor"].sum() == pytest.approx(few["divisor"].sum())
    assert_same(gradients(LLAMA, spec, few), gradients(LLAMA, spec, whole))


def test_missing_rewards_and_masked_answers_are_not_trained_on() -> None:
    groups = groups_of(5, count=2)
    groups[0].total[1] = np.nan
    groups[1].answers[2] = dataclasses.replace(groups[1].answers[2], stopped=False)
    for loss, divisor in (("grpo", 7), ("dr_grpo", 7 * 12)):
        batch = maker(GRPOSpec(loss=loss, max_new_tokens=12, mask_truncated=True), 60, 20,
                      share=False, size=2)(groups)  # fmt: skip
        assert (batch["segment_ids"] > 0).any(1).sum() == 6
        assert batch["divisor"].sum() == divisor
    batch = maker(GRPOSpec(loss="dapo", max_new_tokens=12, mask_truncated=True), 60, 20,
                  share=True, size=2)(groups)  # fmt: skip
    kept = [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)]
    assert batch["divisor"].sum() == sum(len(groups[g].answers[s].ids) for g, s in kept)


@MAKE
def test_scores_go_back_to_their_answers(make_groups) -> None:
    spec = GRPOSpec(max_new_tokens=12)
    groups = make_groups(6)
    make = maker(spec, 40, 4, share=True, rows=40)
    batch = make(groups)
    of_completions = np.take_along_axis(batch["targets"], batch["scored"], axis=1)
    make.hand_back(groups, "targets", of_completions.astype(np.float32))
    for group in groups:
        for answer, values in zip(group.answers, group.scores["targets"], strict=True):
            assert values.astype(int).tolist() == answer.ids


def test_a_group_goes_to_json_and_back() -> None:
    group = groups_of(7)[0]
    group.total[0] = np.nan
    again = Group.from_json(group.to_json())
    assert again.to_json() == group.to_json()
    for one, other in zip(again.answers, group.answers, strict=True):
        np.testing.assert_array_equal(one.log_probs, other.log_probs)
