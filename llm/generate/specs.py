"""What to sample, from which checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from llm.core.hardware import HardwareSpec
from llm.core.spec import Spec, knob


@dataclass(frozen=True, kw_only=True)
class GenerateSpec(Spec):
    """One call of launch/generate.py."""

    checkpoint: str = knob("last", "run folder, checkpoint in it, last or last:TRAINER")
    prompt: str = knob("", "text to go on from; empty starts a document")
    n: int = knob(1, "continuations", gt=0)
    max_new_tokens: int = knob(128, "tokens per continuation", gt=0)
    temperature: float = knob(0.8, "0 takes the likeliest token", ge=0)
    top_p: float = knob(0.95, "sample from the likeliest tokens that hold this much", gt=0, le=1)
    seed: int = knob(0, "all randomness follows from it", ge=0)
    hardware: HardwareSpec = knob(HardwareSpec(), "hardware profile")
