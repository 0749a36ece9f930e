"""Scaled rotary positions as GGUF files keep them: one divisor per pair, in `rope_freqs.weight`.

Llama 3.1's formula (see `RopeScalingSpec`) is recovered from the divisors: the inverse of a divisor
is a straight line of 1 / wavelength, clipped at 1 and at 1 / factor. Only the line's two numbers
have an effect, so any sequence length before stretching fits that the file does not contradict.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from llm.core.spec import RefusedError

ROPE_DIVISORS = "rope_freqs.weight"
ORIGINAL = 8192  # tokens, of Llama 3
_TOLERANCE = 1e-4


def llama3_scaling(
    divisors: Float[np.ndarray, " h"], theta: float, head_dim: int, original: int
) -> dict[str, Any] | None:
    """The `rope_scaling` of a Hugging Face config; None if all divisors are 1.

    Args:
        divisors: what each pair's frequency is divided by, [head_dim / 2].
        theta: base of the wavelengths.
        head_dim: width of a head.
        original: sequence length before stretching.

    Raises:
        RefusedError: the formula gives no such divisors.
    """
    if len(divisors) != head_dim // 2:
        raise RefusedError(
            f"rope_freqs.weight has {len(divisors)} values: expected {head_dim // 2}, half of the "
            f"head's width {head_dim}"
        )
    divisors = divisors.astype(np.float64)
    if not np.isfinite(divisors).all() or (divisors < 1 - _TOLERANCE).any():
        raise RefusedError("rope_freqs.weight: expected finite numbers of at least 1")
    if np.allclose(divisors, 1, rtol=_TOLERANCE):
        return None
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    factor = float(divisors.max())
    for low, high in [(1.0, 4.0), _line(divisors, original / wavelengths, factor)]:
        if 0 < low < high and np.allclose(
            _divisors(original / wavelengths, factor, low, high), divisors, rtol=_TOLERANCE
        ):
            return {
                "rope_type": "llama3",
                "factor": _rounded(factor),
                "low_freq_factor": _rounded(low),
                "high_freq_factor": _rounded(high),
                "original_max_position_embeddings": original,
            }
    raise RefusedError(
        "rope_freqs.weight: these divisors do not follow Llama 3.1's formula (largest "
        f"{factor:g}), and no other scaling of rotary positions is known here"
    )


def _divisors(turns: np.ndarray, factor: float, low: float, high: float) -> np.ndarray:
    """From how often each pair turns within the original length."""
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / factor)


def _line(divisors: np.ndarray, turns: np.ndarray, factor: float) -> tuple[float, float]:
    """Low and high frequency factor from the blended pairs; (0, 0) if there are fewer than two."""
    kept = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    blended = np.flatnonzero((kept > _TOLERANCE) & (kept < 1 - _TOLERANCE))
    if len(blended) < 2:
        return 0.0, 0.0
    ends = blended[[0, -1]]
    (x0, x1), (y0, y1) = turns[ends], kept[ends]
    if y0 == y1:
        return 0.0, 0.0
    inverse_slope = (x1 - x0) / (y1 - y0)
    low = x0 - y0 * inverse_slope
    return float(low), float(low + inverse_slope)


def _rounded(number: float) -> float:
    """Without the last digits that fp32 left over."""
    return float(f"{number:.6g}")
