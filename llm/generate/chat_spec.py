"""Whom to talk with, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass

from llm.core.hardware import HardwareSpec
from llm.core.spec import Spec, knob


@dataclass(frozen=True, kw_only=True)
class ChatSpec(Spec):
    """One call of launch/chat.py."""

    checkpoint: str = knob("last", "run folder, hf:org/name, gguf:FILE, ... as in the README")
    system: str | None = knob(None, "what the model is told first; null leaves it to the template")
    template: str | None = knob(None, "file with a chat template; null takes the model's own")
    max_new_tokens: int = knob(512, "tokens per answer at most", gt=0)
    temperature: float = knob(0.7, "0 takes the likeliest token", ge=0)
    top_k: int = knob(0, "sample from the k likeliest tokens; 0 from all", ge=0)
    top_p: float = knob(0.95, "sample from the likeliest tokens that hold this much", gt=0, le=1)
    min_p: float = knob(0.0, "leave out tokens less likely than this share of the likeliest",
                        ge=0, le=1)  # fmt: skip
    repetition_penalty: float = knob(1.0, "above 1, makes tokens that were there unlikelier", gt=0)
    seed: int = knob(0, "all randomness follows from it", ge=0)
    hardware: HardwareSpec = knob(HardwareSpec(), "hardware profile")
