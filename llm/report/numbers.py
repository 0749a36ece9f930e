"""Numbers as people read them."""

from __future__ import annotations

import math


def si(value: float) -> str:
    """Three digits and a letter: 1234567 is 1.23M."""
    if not math.isfinite(value):
        return "-"
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999_600 is 1.00M, not 1000k.
        if abs(value) >= limit * 0.9995:
            scaled = value / limit
            return f"{scaled:.{_decimals(scaled)}f}{letter}"
    return f"{value:.{_decimals(value)}f}" if value % 1 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """Hours, minutes, seconds: 3725 is 1:02:05, 65 is 1:05; days if there are any."""
    if not math.isfinite(seconds):
        return "-"
    minutes, s = divmod(round(max(seconds, 0.0)), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h}:{m:02}:{s:02}"
    return f"{h}:{m:02}:{s:02}" if h else f"{m}:{s:02}"


def number(value: float | None) -> str:
    """A metric: four decimals, or four digits where that would hide it; missing is a dash."""
    if value is None or not math.isfinite(value):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3e}"
    return f"{value:,.4f}"


def _decimals(value: float) -> int:
    """Decimals that make three digits."""
    size = abs(value)
    return 0 if size >= 99.95 else 1 if size >= 9.995 else 2
