"""Rotary position embedding (Su et al. 2021), plain or stretched, in fp32.

Half-split layout, as Hugging Face stores weights: pair i is (x[i], x[i + H/2]).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llm.models.specs import RopeScalingSpec


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScalingSpec) -> np.ndarray:
    """Radians per position of each pair, fp32 [H / 2]."""
    frequency = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling.factor != 1.0 and scaling.type == "linear":
        frequency = frequency / scaling.factor
    elif scaling.factor != 1.0:
        wavelength = 2 * math.pi / frequency
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        # 0 where the wavelength is long (stretched), 1 where it is short (kept), linear between.
        kept = (scaling.original_max_seq_len / wavelength - low) / (high - low)
        kept = np.clip(kept, 0.0, 1.0)
        frequency = frequency * (kept + (1 - kept) / scaling.factor)
    return frequency.astype(np.float32)


def rope_tables(
    positions_BT: Int[Array, "B T"], frequencies: np.ndarray
) -> tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]]:
    """Cosine and sine of each position's angles; h = H / 2.

    fp32 always: in bf16 an angle of a few hundred radians is off by whole units.
    """
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x_BTNH: Float[Array, "B T N H"],
    tables: tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]],
) -> Float[Array, "B T N H"]:
    """Rotate each pair by its angle."""
    cos, sin = tables
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
