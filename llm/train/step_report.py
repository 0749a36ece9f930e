"""Reports each step one step late, so that the device never waits for the host."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import jax

from llm.core.compilations import Compilations
from llm.core.spec import RunFailedError
from llm.report.run_report import RunReport


class DivergedError(RunFailedError):
    """The loss is no longer a number. Checkpoints from before are kept."""


class _Pending(NamedTuple):
    step: int
    metrics: dict[str, jax.Array]
    of_batch: dict[str, float]
    ready: float | None
    """When it had ended, if it had when it was pushed: CPUs may run a small step while it is
    dispatched. None: it was still running."""


class StepReport:
    """Turns a step's device metrics into a log event once the next step is under way."""

    def __init__(
        self,
        report: RunReport,
        *,
        tokens: int,
        flops_per_token: int,
        peak_flops: float | None,
        memory_gib: Any,
        compilations: Compilations,
        ahead: bool = True,
    ) -> None:
        """Start counting.

        Args:
            report: where events go.
            tokens: tokens trained on before.
            flops_per_token: to train on one token.
            peak_flops: of all devices, FLOP/s; None leaves `perf/mfu` out.
            memory_gib: function that tells the peak of memory used.
            compilations: those of the run.
            ahead: leave the step just started running while the next is prepared. A CPU wins
                nothing by that, and would hold the temporary arrays of both.
        """
        self.tokens = tokens
        self._report = report
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._memory_gib = memory_gib
        self._compilations = compilations
        self._ahead = ahead
        self._compiled = 0  # programs, when last asked
        self._pending: _Pending | None = None
        self._since = time.perf_counter()

    def push(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        of_batch: dict[str, float],
        data_wait: float,
    ) -> None:
        """Take the metrics of the step just started; log those of the step before, or else these.

        Args:
            step: optimizer steps done when these metrics are ready.
            metrics: scalars on the device.
            of_batch: what was measured while the batch was made.
            data_wait: seconds the loop waited for the batch, if `of_batch` does not say so.
        """
        of_batch = {"perf/data_wait": data_wait, **of_batch}
        arrays: list[Any] = list(metrics.values())
        ready = time.perf_counter() if all(array.is_ready() for array in arrays) else None
        previous, self._pending = self._pending, _Pending(step, metrics, of_batch, ready)
        self._log(previous)
        if not self._ahead:
            self.flush()

    def flush(self) -> None:
        """Wait for the newest step and log it."""
        previous, self._pending = self._pending, None
        self._log(previous)

    def has_compiled(self) -> bool:
        """Whether any program was compiled since this was last asked."""
        before, self._compiled = self._compiled, self._compilations.count
        return self._compiled > before

    def restart_clock(self) -> None:
        """Leave what happened since the last step (evaluation, saving) out of the step's time."""
        self._since = time.perf_counter()

    def _log(self, pending: _Pending | None) -> None:
        if pending is None:
            return
        step, device_metrics, of_batch, ready = pending
        metrics = {k: float(v) for k, v in jax.device_get(device_metrics).items()}  # waits
        ready = ready or time.perf_counter()
        seconds, self._since = ready - self._since, ready
        tokens = round(metrics.pop("tokens"))
        self.tokens += tokens
        metrics["perf/step_time"] = seconds
        metrics["perf/tokens_per_second"] = tokens / seconds
        metrics |= of_batch
        metrics["perf/memory_gib"] = self._memory_gib()
        metrics["perf/compile_count"] = self._compilations.count
        metrics["perf/compile_time"] = self._compilations.seconds
        if self._peak_flops is not None:
            flops = self._flops_per_token * tokens / seconds
            metrics["perf/mfu"] = flops / self._peak_flops
        self._report.log(step, self.tokens, metrics)
        if not math.isfinite(metrics["train/loss"]):
            raise DivergedError(
                f"train/loss is {metrics['train/loss']} at step {step}: lower "
                "trainer.optimizer.lr, lengthen the warm-up, or look at the data"
            )
