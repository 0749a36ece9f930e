"""pass@k: how likely one of k answers is right."""

from __future__ import annotations

from math import comb


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that one of `k` answers is right, from `n` drawn ones of which some are right.

    The unbiased estimator of Chen et al. 2021: 1 - C(n - right, k) / C(n, k).

    Raises:
        ValueError: there are fewer than k answers, or than right ones.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"n={n}, right={right}, k={k}")
    return 1 - comb(n - right, k) / comb(n, k)


def ks(n: int) -> list[int]:
    """1, 2, 4, ... up to `n`."""
    return [2**i for i in range(n.bit_length())]
