"""Which optimizer, with which settings."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm.core.spec import Spec, knob

if TYPE_CHECKING:
    import optax


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec, abc.ABC):
    """What every optimizer has."""

    lr: float = knob(doc="peak learning rate", gt=0)

    @property
    def peaks(self) -> dict[str, float]:
        """Peak learning rates, by the names of their fields."""
        return {"lr": self.lr}

    @abc.abstractmethod
    def build(self, schedules: Mapping[str, optax.Schedule]) -> optax.GradientTransformation:
        """Make the optax transformation.

        `schedules` are the learning rates per step, by the names of `peaks`.
        """


@dataclass(frozen=True, kw_only=True)
class AdamWSpec(OptimizerSpec):
    """AdamW (Loshchilov and Hutter 2019); weights decay, biases and norm scales do not."""

    lr: float = knob(2e-3, "peak learning rate", gt=0)
    b1: float = knob(0.9, "decay of the mean of gradients", ge=0, lt=1)
    b2: float = knob(0.95, "decay of the mean of squared gradients", ge=0, lt=1)
    eps: float = knob(1e-8, "added to the root of the mean square", gt=0)
    weight_decay: float = knob(0.1, "share of a matrix removed per step, times the rate", ge=0)

    def build(self, schedules: Mapping[str, optax.Schedule]) -> optax.GradientTransformation:  # noqa: D102
        import optax

        from llm.train.optimizers import is_matrix

        return optax.adamw(
            schedules["lr"],
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=is_matrix,
        )


@dataclass(frozen=True, kw_only=True)
class MuonSpec(OptimizerSpec):
    """Muon for the matrices of the blocks, AdamW for the rest (Jordan et al. 2024).

    The rest is embeddings, the head, biases and norm scales. Updates are scaled to AdamW's usual
    root mean square (Liu et al. 2025), so that both learning rates have the same meaning.
    """

    lr: float = knob(1e-3, "peak learning rate of the matrices", gt=0)
    momentum: float = knob(0.95, "decay of the mean of gradients", ge=0, lt=1)
    newton_schulz_steps: int = knob(5, "iterations that make the update orthogonal", gt=0)
    weight_decay: float = knob(0.1, "share of a matrix removed per step, times the rate", ge=0)
    adam_lr: float = knob(1e-3, "peak learning rate of the rest", gt=0)
    adam_b1: float = knob(0.9, "AdamW's b1 for the rest", ge=0, lt=1)
    adam_b2: float = knob(0.95, "AdamW's b2 for the rest", ge=0, lt=1)
    eps: float = knob(1e-8, "added to denominators", gt=0)

    @property
    def peaks(self) -> dict[str, float]:
        """Peak learning rates, by the names of their fields."""
        return {"lr": self.lr, "adam_lr": self.adam_lr}

    def build(self, schedules: Mapping[str, optax.Schedule]) -> optax.GradientTransformation:  # noqa: D102
        import optax.contrib

        from llm.train.optimizers import is_matrix, muon_or_adamw

        muon = optax.contrib.muon(
            schedules["lr"],
            beta=self.momentum,
            ns_steps=self.newton_schulz_steps,
            eps=self.eps,
            weight_decay=self.weight_decay,
            consistent_rms=0.2,
        )
        # Not optax's own AdamW inside `muon`: that one uses Nesterov momentum.
        adamw = optax.adamw(
            schedules["adam_lr"],
            b1=self.adam_b1,
            b2=self.adam_b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=is_matrix,
        )
        return optax.partition({"muon": muon, "adamw": adamw}, muon_or_adamw)


@dataclass(frozen=True, kw_only=True)
class OptaxSpec(OptimizerSpec):
    """Any other optimizer of optax, by the name of its function: lion, adafactor, sgd, ..."""

    optimizer: str = knob(doc="name of a function in optax or optax.contrib")
    options: dict[str, Any] = knob({}, "its keyword arguments besides learning_rate")

    def build(self, schedules: Mapping[str, optax.Schedule]) -> optax.GradientTransformation:  # noqa: D102
        from llm.train.optimizers import optax_by_name

        return optax_by_name(self.optimizer, schedules["lr"], self.options)
