"""Whom to talk with, and how it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm.core.hardware import HardwareSpec
from llm.core.spec import knob
from llm.generate.specs import Sampling


@dataclass(frozen=True, kw_only=True)
class ChatSpec(Sampling):
    """One call of launch/chat.py."""

    checkpoint: str | Sequence[str] = knob(
        "last", "model: a run folder, last:TRAINER, hf:org/name, gguf:FILE, ... or a list of such"
    )
    system: str | None = knob(None, "what the model is told first; null leaves it to the template")
    template: str | None = knob(None, "file with a chat template; null takes the model's own")
    max_new_tokens: int = knob(512, "tokens per answer at most", gt=0)
    temperature: float = knob(0.7, "0 takes the likeliest token", ge=0)
    top_p: float = knob(0.95, "sample from the likeliest tokens that hold this much", gt=0, le=1)
    seed: int = knob(0, "all randomness follows from it", ge=0, lt=2**63)
    hardware: HardwareSpec = knob(HardwareSpec(), "hardware profile")
