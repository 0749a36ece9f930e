"""The losses of GRPO and its relatives against TRL's code and against plain formulas."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm.generate.batch import Completion
from llm.train.grpo import policy_gradient
from llm.train.grpo.advantages import equal_groups, group_advantages
from llm.train.grpo.groups import Group
from llm.train.grpo.layout import BatchMaker
from llm.train.grpo.policy_gradient import PolicyGradient
from llm.train.grpo.rollouts import overlong_penalty
from llm.train.grpo.spec import ADVANTAGES, LOSSES, GRPOSpec
from llm.train.log_probs import TokenScores, token_scores

MAX_NEW = 9
P, G = 3, 4


def objective_of(spec: GRPOSpec) -> PolicyGradient:
    return spec.objective(64)


def groups_of(rng: np.random.Generator) -> list[Group]:
    """Answers of all lengths, whose old policy differs from what sampled them."""
    groups = []
    for p in range(P):
        lengths = rng.integers(1, MAX_NEW + 1, G)
        answers = [
            Completion(
                rng.integers(0, 50, n).tolist(),
                -rng.exponential(size=n).astype(np.float32),
                bool(n < MAX_NEW),
            )
            for n in lengths
        ]
        old = [a.log_probs + 0.1 * rng.standard_normal(len(a.ids)).astype("f4") for a in answers]
        near = [o + 0.3 * rng.standard_normal(len(o)).astype("f4") for o in old]
        rewards = rng.standard_normal(G)
        groups.append(
            Group(
                [1, 2, 3 + p],
                "?",
                answers,
                [""] * G,
                rewards.tolist(),
                {"r": rewards.tolist()},
                scores={"old_log_probs": old, "reference_log_probs": near},
            )
        )
    advantages = group_advantages(np.array([g.total for g in groups]), "std")
    for group, row in zip(groups, advantages.tolist(), strict=True):
        group.advantages = row
    return groups


def maker(spec: GRPOSpec) -> BatchMaker:
    return BatchMaker(spec, P, (3 + MAX_NEW,), rows=P * G, rows_at_once=P * G, share_prompts=False)


def ours(spec: GRPOSpec, groups: list[Group], now: np.ndarray, entropies: np.ndarray):
    """Loss, its gradient to the log-probabilities, and the metrics' means, in fp64."""
    batch = maker(spec)(groups)
    if not spec.kl_weight:
        batch.pop("reference_log_probs", None)
    with jax.enable_x64(True):
        arrays = {
            k: jnp.asarray(v, jnp.float64 if v.dtype.kind == "f" else v.dtype)
            for k, v in batch.items()
        }

        def loss(log_probs):
            scores = TokenScores(log_probs, jnp.asarray(entropies))
            sums = objective_of(spec)(scores, arrays, None)
            return sums.objective / sums.divisor, sums

        (value, sums), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(now))
        return (
            float(value),
            np.asarray(grad),
            {name: float(total / sums.tokens) for name, total in sums.metrics.items()},
        )


@pytest.fixture
def given_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's place is taken by its log-probabilities and entropies."""
    monkeypatch.setattr(policy_gradient, "completion_scores", lambda model, *_: model)


def theirs(spec: GRPOSpec, groups: list[Group], now: np.ndarray, entropies: np.ndarray):
    """The same by TRL's own `_compute_loss`."""
    from trl import GRPOTrainer

    answers = [a for g in groups for a in g.answers]
    C = now.shape[1]
    mask = torch.tensor([[i < len(a.ids) for i in range(C)] for a in answers]).double()
    if spec.mask_truncated:
        mask = mask * torch.tensor([[a.stopped] for a in answers])

    def padded(values):
        rows = [np.pad(np.asarray(v, np.float64), (0, C - len(v))) for v in values]
        return torch.tensor(np.array(rows))

    logps = torch.tensor(now, requires_grad=True)
    old = padded([x for g in groups for x in g.scores["old_log_probs"]])
    sampled = padded([a.log_probs for a in answers])
    cap = spec.importance_cap
    fake = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.tensor(entropies), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if spec.loss == "gspo" else "token",
        beta=0.0, args=SimpleNamespace(delta=None, steps_per_generation=1),
        loss_type="grpo" if spec.loss == "gspo" else spec.loss,
        epsilon_low=spec.clip_low,
        epsilon_high=spec.clip_high + (spec.loss == "cispo"),
        use_vllm=cap is not None, vllm_importance_sampling_correction=cap is not None,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=MAX_NEW, accelerator=MagicMock(num_processes=1),
        _entropy_bonus_enabled=False, _metrics=MagicMock(),
    )  # fmt: skip
    fake.accelerator.gather = lambda x: x
    inputs = {
        "prompt_ids": torch.zeros(len(answers), 1), "prompt_mask": torch.ones(len(answers), 1),
        "completion_ids": torch.zeros(len(answers), C), "completion_mask": mask,
        "advantages": torch.tensor([x for g in groups for x in g.advantages]).double(),
        "old_per_token_logps": old, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    if cap is not None:
        inputs["importance_sampling_ratio"] = torch.exp(old - sampled).clamp(max=cap)
    loss = GRPOTrainer._compute_loss(fake, None, inputs)
    loss.backward()
    return loss.item(), logps.grad.numpy()


@pytest.mark.usefixtures("given_scores")
@pytest.mark.parametrize("changes", [{}, {"importance_cap": 1.05}, {"mask_truncated": True}],
                         ids=["plain", "importance", "masked"])  # fmt: skip
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_are_trls(loss: str, changes: dict) -> None:
    spec = GRPOSpec(loss=loss, max_new_tokens=MAX_NEW, clip_low=0.1, clip_high=0.15, **changes)
    rng = np.random.default_rng(0)
    groups = groups_of(rng)
    # As the batch has them: what is masked takes no row, so answers keep their order but move up.
    kept = [
        (g, s) for g in groups for s in range(G)
        if not spec.mask_truncated or g.answers[s].stopped
    ]  # fmt: skip
    C = 3 + MAX_NEW
    now = np.zeros((P * G, C))
    for row, (g, s) in enumerate(kept):
        old = g.scores["old_log_probs"][s]
        now[row, : len(old)] = old + 0.2 * rng.standard_normal(len(old))
    entropies = rng.exponential(size=(P * G, C))
    value, grad, metrics = ours(spec, groups, now, entropies)
    full = np.zeros((P * G, C))
    places = {(id(g), s): i for i, (g, s) in enumerate((g, s) for g in groups for s in range(G))}
    rows = [places[id(g), s] for g, s in kept]
    full[rows] = now[: len(rows)]
    want, want_grad = theirs(spec, groups, full, entropies)
    np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(grad[: len(rows)], want_grad[rows], rtol=1e-5, atol=1e-9)
    assert np.abs(want_grad).max() > 0.01
    assert 0 < metrics["policy/clip_fraction"] < 1


@pytest.mark.usefixtures("given_scores")
@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_update_has_a_ratio_of_one(loss: str) -> None:
    rng = np.random.default_rng(1)
    groups = groups_of(rng)
    for group in groups:
        group.scores = {}
    now = rng.standard_normal((P * G, 3 + MAX_NEW))
    spec = GRPOSpec(loss=loss, max_new_tokens=MAX_NEW)
    _, grad, metrics = ours(spec, groups, now, np.zeros_like(now))
    assert metrics["policy/ratio"] == 1.0
    assert metrics["policy/clip_fraction"] == 0.0
    # The gradient is that of -advantage x log p.
    answers = [(a, adv) for g in groups for a, adv in zip(g.answers, g.advantages, strict=True)]
    total = sum(len(a.ids) for a, _ in answers)
    for row, (answer, advantage) in enumerate(answers):
        n = len(answer.ids)
        each = {"grpo": 1 / n / P / G, "gspo": 1 / n / P / G, "dr_grpo": 1 / P / G / MAX_NEW}
        want = -advantage * each.get(loss, 1 / total)
        np.testing.assert_allclose(grad[row, :n], want, rtol=1e-6)
        assert not grad[row, n:].any()


def test_the_gradient_of_the_divergence_is_the_exact_one() -> None:
    """On a categorical of five, with as many samples of each as its probability says."""
    logits = jnp.array([0.3, -1.0, 0.7, 0.1, -0.4])
    near = jax.nn.log_softmax(jnp.array([-0.5, 0.2, 0.4, 0.9, -1.0]))
    exact = jax.grad(lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - near)).sum())(logits)
    spec = GRPOSpec(kl_weight=1.0, loss="dapo")
    objective = objective_of(spec)

    def loss(z):
        log_p = jax.nn.log_softmax(z)[None]
        share = jax.lax.stop_gradient(jnp.exp(log_p))
        batch = {
            "counts": jnp.array([5]), "sampler_log_probs": log_p, "advantages": jnp.zeros((1, 5)),
            "sequence_ids": jnp.arange(1, 6)[None], "reference_log_probs": near[None],
            "weights": share, "divisor": jnp.ones(1),
        }  # fmt: skip
        batch = jax.tree.map(jax.lax.stop_gradient, batch)
        return objective(TokenScores(log_p, jnp.zeros((1, 5))), batch, None).objective

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_gradient, "completion_scores", lambda model, *_: model)
        np.testing.assert_allclose(jax.grad(loss)(logits), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_off_policy_the_divergence_is_still_that_of_the_policy(loss: str) -> None:
    """Samples of an old policy, each weighed by its own ratio, whatever sequence it is of."""
    logits, old_logits = jnp.array([0.3, -1.0, 0.7]), jnp.array([0.0, 0.5, -0.2])
    near = jax.nn.log_softmax(jnp.array([-0.5, 0.2, 0.4]))
    exact = jax.grad(lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - near)).sum())(logits)
    objective = objective_of(GRPOSpec(kl_weight=1.0, loss=loss))
    old = jax.nn.log_softmax(old_logits)[None]

    def divergence(z):
        batch = {
            "counts": jnp.array([3]), "sampler_log_probs": old, "old_log_probs": old,
            "advantages": jnp.zeros((1, 3)), "sequence_ids": jnp.ones((1, 3), int),
            "reference_log_probs": near[None], "weights": jnp.exp(old), "divisor": jnp.ones(1),
        }  # fmt: skip
        scores = TokenScores(jax.nn.log_softmax(z)[None], jnp.zeros((1, 3)))
        return objective(scores, batch, None).objective

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_gradient, "completion_scores", lambda model, *_: model)
        np.testing.assert_allclose(jax.grad(divergence)(logits), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("given_scores")
@pytest.mark.parametrize("loss", LOSSES)
def test_the_entropy_bonus_lowers_the_loss(loss: str) -> None:
    """By its weight times the entropies, summed as the loss's tokens are; fp64."""
    spec = GRPOSpec(loss=loss, max_new_tokens=MAX_NEW, entropy_weight=0.3)
    rng = np.random.default_rng(2)
    groups = groups_of(rng)
    answers = [a for g in groups for a in g.answers]
    total = sum(len(a.ids) for a in answers)
    entropies = rng.exponential(size=(P * G, 3 + MAX_NEW))
    each = {"grpo": P * G, "gspo": P * G}
    lowered = 0.0
    for row, n in enumerate(len(a.ids) for a in answers):
        shares = {"dr_grpo": P * G * MAX_NEW, **{k: v * n for k, v in each.items()}}
        lowered += 0.3 * entropies[row, :n].sum() / shares.get(loss, total)
    now = rng.standard_normal(entropies.shape)
    value, grad, metrics = ours(spec, groups, now, entropies)
    plain, same, _ = ours(spec.replace(entropy_weight=0.0), groups, now, entropies)
    np.testing.assert_allclose(plain - value, lowered, rtol=1e-6)
    np.testing.assert_array_equal(grad, same)
    mean = sum(entropies[row, : len(a.ids)].sum() for row, a in enumerate(answers)) / total
    assert metrics["policy/entropy"] == pytest.approx(mean)


@pytest.mark.usefixtures("given_scores")
def test_the_entropy_bonus_has_a_gradient() -> None:
    objective = objective_of(GRPOSpec(entropy_weight=0.3, loss="dapo"))
    zeros = jnp.zeros((1, 2))
    batch = {
        "counts": jnp.array([2]), "sampler_log_probs": zeros, "advantages": zeros,
        "sequence_ids": jnp.ones((1, 2), int), "weights": jnp.array([[1.0, 0.5]]),
        "divisor": jnp.ones(1),
    }  # fmt: skip

    def value(entropies):
        return objective(TokenScores(zeros, entropies), batch, None).objective

    np.testing.assert_allclose(jax.grad(value)(zeros + 1), [[-0.3, -0.15]], rtol=1e-6)


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0), (12, 0), (13, -0.25), (14, -0.5), (15, -0.75), (16, -1)]
)
def test_answers_near_the_limit_are_worth_less(length: int, penalty: float) -> None:
    assert overlong_penalty(length, limit=16, buffer=4) == penalty


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_and_their_gradients_are_the_plain_ones(chunk: int, temperature: float) -> None:
    B, T, D, V, C = 3, 9, 8, 23, 11
    keys = jax.random.split(jax.random.key(0), 6)
    hidden = jax.random.normal(keys[0], (B, T, D))
    head = jax.random.normal(keys[1], (V, D))
    places = jax.random.randint(keys[2], (B, C), 0, T)  # some are shared
    targets = jax.random.randint(keys[3], (B, C), 0, V)
    counts = jnp.array([11, 0, 4])
    weight = jax.random.normal(keys[4], (2, B, C))

    def plain(hidden, head):
        logits = jnp.take_along_axis(hidden, places[..., None], 1) @ head.T / temperature
        log_p = jax.nn.log_softmax(logits)
        mask = jnp.arange(C) < counts[:, None]
        chosen = jnp.take_along_axis(log_p, targets[..., None], 2)[..., 0]
        return jnp.where(mask, chosen, 0), jnp.where(mask, -(jnp.exp(log_p) * log_p).sum(-1), 0)

    def fast(hidden, head):
        return token_scores(
            hidden, head, places, targets, counts, chunk=chunk, temperature=temperature
        )

    for one, other in zip(fast(hidden, head), plain(hidden, head), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    def total(function):
        return lambda *x: sum(jnp.vdot(w, s) for w, s in zip(weight, function(*x), strict=True))

    got, want = (jax.grad(total(f), (0, 1))(hidden, head) for f in (fast, plain))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_advantages(kind: str) -> None:
    rng = np.random.default_rng(0)
    rewards = rng.standard_normal((5, 6))
    rewards[1] = 0.1 + 0.2  # equal, and no round number
    rewards[2, 3] = np.nan
    rewards[3, 1:] = np.nan
    got = group_advantages(rewards, kind)
    assert not got[1].any() and not got[3].any() and got[2, 3] == 0
    row = rewards[0]
    mean, std = row.mean(), row.std(ddof=1)
    everything = rewards[~np.isnan(rewards)]
    want = {
        "std": (row - mean) / (std + 1e-4),
        "none": row - mean,
        "leave_one_out": [r - np.delete(row, i).mean() for i, r in enumerate(row)],
        "batch_std": (row - mean) / (everything.std(ddof=1) + 1e-4),
    }[kind]
    np.testing.assert_allclose(got[0], want, rtol=1e-12)
    np.testing.assert_allclose(np.delete(got[2], 3), group_advantages(
        np.vstack([np.delete(rewards[2], 3)]), kind)[0] if kind != "batch_std" else
        (np.delete(rewards[2], 3) - np.nanmean(rewards[2])) / (everything.std(ddof=1) + 1e-4),
        rtol=1e-12)  # fmt: skip
    assert equal_groups(rewards).tolist() == [False, True, False, True, False]
    with pytest.raises(ValueError, match="expected one of std"):
        group_advantages(rewards, "best")
