"""What a trainer brings to the loop: batches, a loss, and how the result is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from llm.core.machine import Machine
from llm.data.tokenizer import Tokenizer
from llm.models.specs import ModelSpec
from llm.report.ledger import Ledger
from llm.report.run_report import RunReport
from llm.report.samples import Sample
from llm.train.state import TrainState
from llm.train.step import Stepper
from llm.train.stopping import StopSignal
from llm.train.trainer_spec import BatchRows

HostBatch = dict[str, np.ndarray]


class Drawn(NamedTuple):
    """A batch on the host, and what was measured while it was made."""

    batch: HostBatch
    metrics: dict[str, float]


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    def waits(self) -> bool:
        """The next batch needs the weights themselves: there is none before the step under way."""

    def next(self, state: TrainState) -> Drawn:
        """The next batch; it may depend on the weights.

        Raises:
            StopRequestedError: a stop was asked for meanwhile; the source is as it was before.
        """

    def cursor(self) -> dict[str, Any]:
        """JSON data from which the source can go on exactly here."""

    def restore(self, cursor: dict[str, Any]) -> None:
        """Go on where `cursor()` was taken."""

    def close(self) -> None:
        """Let go of threads and processes."""


@dataclass(frozen=True)
class Workbench:
    """What a run has made by the time its trainer begins."""

    model: ModelSpec
    """With the size of its vocabulary settled."""
    machine: Machine
    stepper: Stepper
    rows: BatchRows
    """Of a batch."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    place: Callable[[HostBatch], dict[str, jax.Array]]
    """Puts a batch on the devices."""
    report: RunReport
    stop: StopSignal
    ledger: Ledger
    resumed: bool


class Work(NamedTuple):
    """What the loop takes turns with."""

    source: Source
    evaluate: Callable[[Any], dict[str, float]] | None
    """Held-out metrics of some weights; None if nothing is held out."""
    sample: Callable[[Any, int], tuple[list[Sample], dict[str, float]]] | None
    """Samples from some weights at some step, and metrics of them; None if none are wanted."""


@runtime_checkable
class Trainer(Protocol):
    """One way of training. Made from its spec, it has read its data."""

    tokenizer: Tokenizer
    fingerprint: dict[str, Any]
    """What was read, and how much, as JSON data."""

    def begin(self, bench: Workbench) -> Work:
        """The parts for the loop."""

    def score(self, metrics: dict[str, float]) -> float | None:
        """Of an evaluation, how bad it is: the checkpoint with the lowest is the best."""
