"""A prompt with its answers, as they were sampled and judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm.generate.batch import Completion


@dataclass
class Group:
    """One prompt and its answers."""

    prompt: list[int]
    question: str
    """The prompt as text."""
    answers: list[Completion]
    texts: list[str]
    """What the rewards were given: the answers without special tokens."""
    total: list[float]
    """Reward of each answer; NaN where there is none."""
    rewards: dict[str, list[float]]
    """Each reward without its weight."""
    advantages: list[float] = field(default_factory=list)
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Further numbers per token of each answer, such as `old_log_probs`."""

    def to_json(self) -> dict[str, Any]:
        """As JSON data, from which `from_json` makes the same group, bit for bit."""
        answers = [
            {"ids": a.ids, "log_probs": a.log_probs.tolist(), "stopped": a.stopped}
            for a in self.answers
        ]
        scores = {name: [x.tolist() for x in of_one] for name, of_one in self.scores.items()}
        rewards = {name: _with_null(values) for name, values in self.rewards.items()}
        shallow = {k: getattr(self, k) for k in ("prompt", "question", "texts", "advantages")}
        return {
            **shallow,
            "answers": answers,
            "total": _with_null(self.total),
            "rewards": rewards,
            "scores": scores,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Group:
        """The inverse of `to_json`."""
        answers = [
            Completion(a["ids"], np.array(a["log_probs"], np.float32), a["stopped"])
            for a in data["answers"]
        ]
        scores = {
            name: [np.array(x, np.float32) for x in of_one]
            for name, of_one in data["scores"].items()
        }
        rewards = {name: _with_nan(values) for name, values in data["rewards"].items()}
        changed = {"answers": answers, "scores": scores, "rewards": rewards}
        return cls(**{**data, **changed, "total": _with_nan(data["total"])})


def _with_null(values: list[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if np.isnan(x) else float(x) for x in values]


def _with_nan(values: list[float | None]) -> list[float]:
    return [np.nan if x is None else x for x in values]
