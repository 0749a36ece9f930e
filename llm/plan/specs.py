"""A plan is asked for with the words of a run, and some of its own."""

from __future__ import annotations

from dataclasses import dataclass

from llm.core.spec import knob
from llm.train.experiment import ExperimentSpec


@dataclass(frozen=True, kw_only=True)
class PlanSpec(ExperimentSpec):
    """One call of launch/plan.py."""

    exact: bool = knob(
        False, "compile the run's programs for the device, and show the compiler's own figures"
    )
