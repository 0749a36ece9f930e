"""How text is generated: settings of the sampler, and of launch/generate.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from llm.core.hardware import DTYPES, HardwareSpec
from llm.core.spec import RefusedError, Spec, knob


@dataclass(frozen=True, kw_only=True)
class Sampling(Spec):
    """How tokens are drawn. The filters act in the order in which they stand here.

    Penalty: Keskar et al. 2019; top-p: Holtzman et al. 2020; min-p: Nguyen et al. 2024.
    """

    max_new_tokens: int = knob(128, "tokens per answer at most", gt=0)
    repetition_penalty: float = knob(
        1.0, "divides positive and multiplies negative logits of tokens already there; 1 is off",
        gt=0,
    )  # fmt: skip
    temperature: float = knob(1.0, "divides the logits; 0 takes the likeliest token", ge=0)
    top_k: int = knob(0, "draw from the k likeliest tokens; 0 is off", ge=0)
    top_p: float = knob(1.0, "draw from the likeliest tokens that hold this much", gt=0, le=1)
    min_p: float = knob(
        0.0, "leave out tokens less likely than this share of the likeliest", ge=0, le=1
    )

    def sampling(self) -> Sampling:
        """These settings alone, without what a subclass adds."""
        return Sampling(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Sampling)})


@dataclass(frozen=True, kw_only=True)
class GenerateSpec(Sampling):
    """One call of launch/generate.py."""

    checkpoint: str | Sequence[str] = knob(
        "last", "model: a run folder, last:TRAINER, hf:org/name, gguf:FILE, ... or a list of such"
    )
    prompt: str | None = knob(None, "text to go on from; empty starts a document")
    prompts_file: str | None = knob(
        None, "file of prompts instead: one per line, or .jsonl with a field `prompt`"
    )
    n: int = knob(1, "answers per prompt", gt=0)
    out: str | None = knob(None, "new .jsonl file for the answers; null writes to the terminal")
    temperature: float = knob(0.8, "divides the logits; 0 takes the likeliest token", ge=0)
    top_p: float = knob(0.95, "draw from the likeliest tokens that hold this much", gt=0, le=1)
    stop: Sequence[str] = knob([], "texts that end an answer, besides the model's own stop tokens")
    seed: int = knob(0, "all randomness follows from it", ge=0, lt=2**63)
    batch_size: int = knob(32, "rows that are decoded at a time", gt=0)
    dtype: str = knob("float32", "type in which the weights are kept", choices=DTYPES)
    hardware: HardwareSpec = knob(HardwareSpec(), "hardware profile")

    def check(self) -> None:  # noqa: D102
        if self.prompt is not None and self.prompts_file is not None:
            raise RefusedError("prompt and prompts_file: give one of them")
