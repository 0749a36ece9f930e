"""The policy-gradient losses: what a token adds, and how tokens are summed.

Published forms, all with group-relative advantages:

* `grpo`: clipped ratio per token, mean over a completion's tokens, then over completions
  (Shao et al. 2024, DeepSeekMath);
* `dr_grpo`: sum over tokens, divided by completions times their largest length (Liu et al. 2025);
* `dapo`: mean over all tokens of the batch (Yu et al. 2025);
* `gspo`: one ratio per completion, the geometric mean of its tokens' (Zheng et al. 2025);
* `cispo`: the ratio is a clipped weight without gradient (MiniMax 2025), mean over all tokens.

B rows, T places of a row, N scored tokens and C completion tokens per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from llm.train.log_probs import TokenScores, token_scores
from llm.train.step import Batch, Sums


class Terms(NamedTuple):
    """What each token adds, [B, C]."""

    loss: Float[Array, "B C"]
    """To be weighted and summed; carries the gradient."""
    clipped: Float[Array, "B C"]
    """1 where the ratio lies beyond its bound, on the side where that stops the gradient."""
    ratio: Float[Array, "B C"]


@dataclass(frozen=True)
class PolicyGradient:
    """Sum over the completions' tokens of the policy-gradient loss. Dropout stays off."""

    loss_chunk: int
    loss: str
    temperature: float
    clip_low: float
    clip_high: float
    kl_weight: float
    entropy_weight: float
    importance_cap: float | None

    def __call__(self, model: Any, batch: Batch, dropout_keys_B: Key[Array, " B"] | None) -> Sums:
        """Sums over the rows of `batch`, which `llm.train.grpo.rows` describes."""
        del dropout_keys_B  # the policy that is trained is the one that was sampled from
        scores = completion_scores(model, batch, self.loss_chunk, self.temperature)
        mask_BC = batch["sequence_ids"] > 0
        sampled_BC = batch["sampler_log_probs"]
        # On the first update the old policy is the current one: the ratio is 1, its gradient is not
        # 0, and no pass is needed to know it.
        now_BC = jax.lax.stop_gradient(scores.log_probs)
        old_BC = batch.get("old_log_probs", now_BC)
        terms = self.terms(scores.log_probs, old_BC, batch["advantages"], batch["sequence_ids"])
        loss_BC = terms.loss
        if self.importance_cap is not None:
            # What was sampled is not quite what the trainer computes (Yao et al. 2025).
            loss_BC *= jnp.minimum(jnp.exp(old_BC - sampled_BC), self.importance_cap)
        if "reference_log_probs" in batch:
            delta_BC = scores.log_probs - batch["reference_log_probs"]
            # The gradient of half the square is delta x grad log p, whose mean over samples of the
            # policy is the gradient of KL(policy || reference). That of k3 is another's; that of
            # delta itself is 0 on average (Schulman 2020; Liu et al. 2025). The old policy sampled:
            # each token's own ratio makes samples of the policy of them, in whatever the loss.
            loss_BC += self.kl_weight * jnp.exp(now_BC - old_BC) * delta_BC**2 / 2
        else:
            delta_BC = now_BC - sampled_BC
        loss_BC -= self.entropy_weight * scores.entropies
        metrics = {
            "policy/kl": jnp.exp(-delta_BC) - 1 + delta_BC,  # k3
            "policy/kl_k1": delta_BC,
            "policy/kl_k2": delta_BC**2 / 2,
            "policy/entropy": scores.entropies,
            "policy/clip_fraction": terms.clipped,
            "policy/ratio": terms.ratio,
            "policy/sampler_logprob_gap": jnp.abs(old_BC - sampled_BC),
        }
        objective = jnp.where(mask_BC, batch["weights"] * loss_BC, 0).sum()
        return Sums(
            objective=objective,
            loss=objective,
            divisor=batch["divisor"].sum(),
            tokens=mask_BC.sum(dtype=jnp.float32),
            metrics={
                name: jax.lax.stop_gradient(jnp.where(mask_BC, value, 0).sum())
                for name, value in metrics.items()
            },
        )

    def terms(
        self,
        log_probs_BC: Float[Array, "B C"],
        old_BC: Float[Array, "B C"],
        advantages_BC: Float[Array, "B C"],
        sequence_ids_BC: Int[Array, "B C"],
    ) -> Terms:
        """The loss of each token without KL, entropy and importance weight.

        Args:
            log_probs_BC: of the policy that is trained.
            old_BC: of the one that it is compared with.
            advantages_BC: of the completion that each token belongs to.
            sequence_ids_BC: number of that completion in its row, from 1 on; 0 is no token.
        """
        log_ratio_BC = log_probs_BC - old_BC
        if self.loss == "gspo":
            log_ratio_BC = jax.vmap(_mean_of_sequence)(log_ratio_BC, sequence_ids_BC)
        ratio_BC = jnp.exp(log_ratio_BC)
        too_high_BC = (ratio_BC > 1 + self.clip_high) & (advantages_BC > 0)
        if self.loss == "cispo":
            weight_BC = jax.lax.stop_gradient(jnp.minimum(ratio_BC, 1 + self.clip_high))
            loss_BC = -weight_BC * advantages_BC * log_probs_BC
            return Terms(loss_BC, too_high_BC.astype(jnp.float32), ratio_BC)
        bounded_BC = jnp.clip(ratio_BC, 1 - self.clip_low, 1 + self.clip_high)
        loss_BC = -jnp.minimum(ratio_BC * advantages_BC, bounded_BC * advantages_BC)
        too_low_BC = (ratio_BC < 1 - self.clip_low) & (advantages_BC < 0)
        return Terms(loss_BC, (too_low_BC | too_high_BC).astype(jnp.float32), ratio_BC)


def completion_scores(model: Any, batch: Batch, loss_chunk: int, temperature: float) -> TokenScores:
    """Log-probabilities and entropies of the completions' tokens, [B, C]; any where none is."""
    hidden_BTD, _ = model(
        batch["tokens"],
        segment_ids_BT=batch["segment_ids"],
        positions_BT=batch["positions"],
        ends_BT=batch["ends"],
    )
    scores_BN = token_scores(
        hidden_BTD,
        model.head_VD().astype(hidden_BTD.dtype),
        batch["places"],
        batch["targets"],
        batch["counts"],
        chunk=loss_chunk,
        temperature=temperature,
    )
    return TokenScores(*(jnp.take_along_axis(x, batch["scored"], axis=1) for x in scores_BN))


def _mean_of_sequence(values_C: Array, sequence_ids_C: Array) -> Array:
    """Each token's value replaced by the mean over its completion."""
    C = len(values_C)
    totals = jnp.zeros(C + 1).at[sequence_ids_C].add(values_C)
    sizes = jnp.zeros(C + 1).at[sequence_ids_C].add(1.0)
    return (totals / jnp.maximum(sizes, 1))[sequence_ids_C]
