"""Advantages: how much better a completion is than the others of its group.

P groups (prompts), G completions each.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from llm.train.grpo.spec import ADVANTAGES

_EPS = 1e-4  # as in TRL: keeps a group that is all but equal from becoming loud


def group_advantages(rewards_PG: Float[np.ndarray, "P G"], kind: str) -> Float[np.ndarray, "P G"]:
    """Rewards relative to their group's mean, fp64. Exactly 0 in a group of equal rewards.

    Args:
        rewards_PG: NaN where a completion has none; it gets 0 and counts for nobody's mean.
        kind: `std` divides by the group's standard deviation (Shao et al. 2024), `batch_std` by
            that of the whole batch, `none` by nothing (Liu et al. 2025); `leave_one_out` takes the
            mean of the others (Ahmadian et al. 2024). Deviations are those of a sample (n - 1).
    """
    rewards_PG = np.asarray(rewards_PG, np.float64)
    there_PG = ~np.isnan(rewards_PG)
    count_P1 = there_PG.sum(1, keepdims=True)
    values_PG = np.where(there_PG, rewards_PG, 0.0)
    mean_P1 = values_PG.sum(1, keepdims=True) / np.maximum(count_P1, 1)
    # Rounding in the mean must not become signal.
    off_PG = np.where(there_PG & ~equal_groups(rewards_PG)[:, None], values_PG - mean_P1, 0.0)
    if kind == "none":
        return off_PG
    if kind == "leave_one_out":
        return off_PG * count_P1 / np.maximum(count_P1 - 1, 1)
    if kind == "std":
        square_P1 = (off_PG**2).sum(1, keepdims=True) / np.maximum(count_P1 - 1, 1)
        return off_PG / (np.sqrt(square_P1) + _EPS)
    if kind == "batch_std":
        rewards = rewards_PG[there_PG]
        return off_PG / ((rewards.std(ddof=1) if len(rewards) > 1 else 0.0) + _EPS)
    raise ValueError(f"advantage={kind}: expected one of {', '.join(ADVANTAGES)}")


def equal_groups(rewards_PG: Float[np.ndarray, "P G"]) -> np.ndarray:
    """Groups without signal, bool [P]: all rewards equal, or fewer than two of them."""
    there_PG = ~np.isnan(rewards_PG)
    high_P = np.where(there_PG, rewards_PG, -np.inf).max(1)
    low_P = np.where(there_PG, rewards_PG, np.inf).min(1)
    return np.asarray((high_P == low_P) | (there_PG.sum(1) < 2))
