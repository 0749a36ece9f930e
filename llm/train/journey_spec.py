"""A model's whole life, stage by stage, as one call of launch/journey.py has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm.core.spec import RefusedError, Spec, knob


@dataclass(frozen=True, kw_only=True)
class JourneySpec(Spec):
    """The words of each stage; where its parent lies is added to them."""

    tokenizer: Sequence[str] = knob([], "words of launch/tokenizer.py")
    pretrain: Sequence[str] = knob([], "words of launch/main.py, with this tokenizer")
    sft: Sequence[str] = knob([], "words of launch/main.py trainer=sft, from the pre-trained model")
    grpo: Sequence[str] = knob([], "words of launch/main.py trainer=grpo, from the fine-tuned one")
    evaluate: Sequence[str] = knob([], "words of launch/evaluate.py, of all three models")
    export: Sequence[str] = knob([], "words of launch/export.py, of the last model")
    every_run: Sequence[str] = knob([], "words that all three training runs get besides")

    def check(self) -> None:  # noqa: D102
        for name in ("tokenizer", "pretrain", "sft", "grpo", "evaluate", "export", "every_run"):
            for word in getattr(self, name):
                if "=" not in word:
                    raise RefusedError(f"{name}: {word!r}: expected words such as key=value")
                if word.startswith(("hydra.run.dir=", "resume=", "out=")):
                    raise RefusedError(f"{name}: {word!r}: stages lie in the folder of the journey")
