"""The learning rate over the steps of a run."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm.core.spec import Spec, knob

if TYPE_CHECKING:
    import optax


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(Spec, abc.ABC):
    """Learning rate over the optimizer steps: a linear warm-up, then what the subclass does."""

    warmup_steps: int = knob(20, "steps from 0 to the peak", ge=0)

    @abc.abstractmethod
    def after_warmup(self, peak: Any, steps: int) -> optax.Schedule:
        """The schedule of the `steps` that follow the warm-up."""

    def build(self, peak: Any, steps: int) -> optax.Schedule:
        """Learning rate as a function of the step, for a run of `steps` steps in all.

        `peak` is a number or an array of one.
        """
        import optax

        after = self.after_warmup(peak, max(steps - self.warmup_steps, 1))
        if not self.warmup_steps:
            return after
        # The first update is made with peak / warmup_steps, not with 0: no step is wasted.
        warmup = optax.linear_schedule(peak / self.warmup_steps, peak, self.warmup_steps - 1)
        return optax.join_schedules([warmup, after], [self.warmup_steps])


@dataclass(frozen=True, kw_only=True)
class WarmupCosineSpec(ScheduleSpec):
    """Half a cosine from the peak to `final_fraction` of it (Loshchilov and Hutter 2017)."""

    final_fraction: float = knob(
        0.1, "learning rate at the end, as a share of the peak", ge=0, le=1
    )

    def after_warmup(self, peak: Any, steps: int) -> optax.Schedule:  # noqa: D102
        import optax

        return optax.cosine_decay_schedule(peak, steps, self.final_fraction)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecaySpec(ScheduleSpec):
    """The peak for most of the run, then a straight line down (Hu et al. 2024)."""

    decay_fraction: float = knob(0.2, "share of the run spent decaying", gt=0, le=1)
    final_fraction: float = knob(
        0.0, "learning rate at the end, as a share of the peak", ge=0, le=1
    )

    def after_warmup(self, peak: Any, steps: int) -> optax.Schedule:  # noqa: D102
        import optax

        decay = max(round(self.decay_fraction * (steps + self.warmup_steps)), 1)
        decay = min(decay, steps)
        return optax.linear_schedule(peak, self.final_fraction * peak, decay, steps - decay)


@dataclass(frozen=True, kw_only=True)
class LinearSpec(ScheduleSpec):
    """A straight line from the peak to `final_fraction` of it."""

    final_fraction: float = knob(
        0.0, "learning rate at the end, as a share of the peak", ge=0, le=1
    )

    def after_warmup(self, peak: Any, steps: int) -> optax.Schedule:  # noqa: D102
        import optax

        return optax.linear_schedule(peak, self.final_fraction * peak, steps)


@dataclass(frozen=True, kw_only=True)
class ConstantSpec(ScheduleSpec):
    """The peak until the end."""

    def after_warmup(self, peak: Any, steps: int) -> optax.Schedule:  # noqa: D102
        import optax

        return optax.constant_schedule(peak)
