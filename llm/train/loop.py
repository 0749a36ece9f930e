"""THE loop. Trainers differ in where batches come from and what the loss is, not here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
from loguru import logger

from llm.core.allocator import give_back
from llm.core.hosts import several
from llm.hub.checkpoints import Checkpoints
from llm.report.ledger import Ledger
from llm.report.run_report import RunReport
from llm.report.samples import Sample
from llm.train.compiled import Compiled
from llm.train.state import TrainState
from llm.train.step_report import DivergedError, StepReport
from llm.train.step_trace import StepTrace
from llm.train.stopping import StopRequestedError, StopSignal
from llm.train.trainer import Source


@dataclass
class Progress:
    """What the loop knows besides the training state; kept in every checkpoint."""

    evaluated: int | None = None
    """Step of the newest evaluation."""
    sampled: int | None = None
    """Step of the newest samples."""
    eval_metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Loop:
    """The parts of a run, and how they take turns."""

    train_step: Compiled
    """`Stepper.train_step`: state, batch and peaks in, state and metrics out."""
    peaks: dict[str, Any]
    """Learning rates, see there."""
    place: Callable[[Any], Any]
    """Puts a host batch on the devices."""
    evaluate: Callable[[Any], dict[str, float]] | None
    sample: Callable[[Any, int], tuple[list[Sample], dict[str, float]]] | None
    """See `llm.train.trainer.Work`."""
    score: Callable[[dict[str, float]], float | None]
    """See `llm.train.trainer.Trainer`."""
    checkpoints: Checkpoints
    meta: dict[str, Any]
    """What a checkpoint says besides arrays, cursor and progress."""
    report: RunReport
    steps: StepReport
    stop: StopSignal
    ledger: Ledger
    trace: StepTrace
    total: int
    eval_every: int
    save_every: int
    sample_every: int | None
    sample_first: bool
    """Sample before the first step too: from weights that can do something already."""
    progress: Progress = field(default_factory=Progress)
    saved: int | None = None
    """Step of the newest checkpoint."""

    def run(self, state: TrainState, source: Source) -> tuple[TrainState, str]:
        """Train until `total` steps are done or a stop is asked for.

        Returns:
            The last state, and `finished` or `stopped`.
        """
        step = first = int(state.step)
        cursor: dict[str, Any] | None = None
        try:
            for step in range(first, self.total + 1):
                cursor = source.cursor()  # before anything can fail: it belongs to this state
                self._evaluate_if_due(step, state)
                self._sample_if_due(step, state)
                stopping = self.stop()
                if stopping or step == self.total or (step % self.save_every == 0 and step > first):
                    self._save(step, state, cursor)
                if stopping or step == self.total:
                    break
                try:
                    state = self._step(step, state, source)
                except StopRequestedError:  # before the step: the state is as it was
                    self._save(step, state, cursor)
                    break
        except Exception as error:
            self._rescue(error, state, cursor)
            raise
        finally:
            self.trace.close()
        return state, "finished" if step == self.total else "stopped"

    def _step(self, step: int, state: TrainState, source: Source) -> TrainState:
        if self.trace.turn():
            with self._pause("profile"):
                self.trace.switch()
        if source.waits():
            with self.ledger("train"):
                self.steps.flush()  # else the batch's time would be that of the step under way
        started = time.perf_counter()
        with self.ledger("data"):
            drawn = source.next(state)
            batch = self.place(drawn.batch)
        waited = time.perf_counter() - started
        if self.steps.has_compiled():  # also to make the batch
            give_back()
        arguments = state, batch, self.peaks
        if not self.train_step.ready(*arguments):
            with self._pause("compile"):
                self.train_step.compile(*arguments)
        with self.ledger("train"):
            state, metrics = self.train_step(*arguments)
            self.steps.push(step + 1, metrics, drawn.metrics, waited)  # looks at the step before
        return state

    def _evaluate_if_due(self, step: int, state: TrainState) -> None:
        due = step % self.eval_every == 0 or step == self.total
        if self.evaluate is None or not due or self.progress.evaluated == step or self.stop():
            return
        with self._pause("eval"):
            try:
                metrics = self.evaluate(state.eval_params)
            except StopRequestedError:
                return
            self.report.log(step, self.steps.tokens, metrics)
            self.progress.evaluated, self.progress.eval_metrics = step, metrics

    def _sample_if_due(self, step: int, state: TrainState) -> None:
        if self.sample is None or self.sample_every is None or self.stop():
            return
        due = step % self.sample_every == 0 and (step > 0 or self.sample_first)
        due = due or step == self.total
        if not due or self.progress.sampled == step:
            return
        with self._pause("sample"):
            try:
                samples, metrics = self.sample(state.eval_params, step)
            except StopRequestedError:
                return
            self.report.samples(step, self.steps.tokens, samples)
            if metrics:
                self.report.log(step, self.steps.tokens, metrics)
            self.progress.sampled = step

    @contextmanager
    def _pause(self, phase: str) -> Iterator[None]:
        """Wait for the step under way, charge what follows to `phase`, and not to a step."""
        with self.ledger("train"):
            self.steps.flush()
        with self.ledger(phase):
            give_back()
            yield
            give_back()
        self.steps.restart_clock()

    def _save(self, step: int, state: TrainState, cursor: dict[str, Any]) -> None:
        with self._pause("checkpoint"):
            if self.saved == step:
                return
            evaluated_here = self.progress.evaluated == step
            self.checkpoints.save(
                step,
                state,
                {
                    **self.meta,
                    "step": step,
                    "tokens": self.steps.tokens,
                    "cursor": cursor,
                    "progress": {
                        "evaluated": self.progress.evaluated,
                        "sampled": self.progress.sampled,
                        "eval_metrics": self.progress.eval_metrics,
                    },
                },
                score=self.score(self.progress.eval_metrics) if evaluated_here else None,
            )
            self.saved = step

    def _rescue(self, error: Exception, state: TrainState, cursor: dict[str, Any] | None) -> None:
        """Keep what is whole: checkpoints under way, and the state of a crash outside the step."""
        if several():  # saving takes all processes, and this may be the only one that failed
            return
        lost = any(x.is_deleted() for x in jax.tree.leaves(state))
        try:
            if not (isinstance(error, DivergedError) or lost or cursor is None):
                self._save(int(state.step), state, cursor)
                logger.info("A checkpoint at step {} before giving up.", int(state.step))
            self.checkpoints.wait()
        except Exception as second:
            logger.warning("No checkpoint could be saved: {!r}", second)
