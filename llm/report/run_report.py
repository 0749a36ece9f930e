"""The one object that the training loop reports to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from loguru import logger

from llm.report.best import Scores
from llm.report.completions import write_completions
from llm.report.metrics_file import MetricsFile
from llm.report.progress import ProgressLine
from llm.report.run_files import now, write_result
from llm.report.samples import Sample, write_samples
from llm.report.specs import TrackerSpec
from llm.report.wandb_tracker import WandbTracker, new_run_id

Status = Literal["finished", "stopped", "failed"]


class RunReport:
    """Takes a run's events and makes files, charts and a progress line of them.

    Only writing metrics.jsonl and the samples can raise (`OSError`, for instance a full disk): a
    run whose numbers are lost should stop. Nothing else here stops or delays the loop.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tracker: TrackerSpec,
        config: Mapping[str, Any],
        lineage: Mapping[str, Any],
        title: str,
        total_steps: int,
        start_step: int = 0,
        start_tokens: int = 0,
        resumed: bool | None = None,
        tracker_id: str | None = None,
        next_commands: Sequence[str] = (),
    ):
        """Open the files and start the display.

        Args:
            folder: the run folder; it must exist.
            tracker: where metrics go besides metrics.jsonl.
            config: the resolved configuration, as JSON data.
            lineage: where the run comes from (parent, data, tokenizer, git), as JSON data.
            title: one line that names the run, for people.
            total_steps: optimizer steps of the whole run.
            start_step, start_tokens: what the checkpoint to go on from had done.
            resumed: whether there is such a checkpoint; by default if `start_step` is not 0.
                Events after `start_step` are then cut off metrics.jsonl, else all of them.
            tracker_id: the W&B run id of the run to go on with; a new one by default.
            next_commands: lines for the closing panel: what to do with the result. How to resume
                is added where it applies.
        """
        self.folder = folder
        self.tracker_id = tracker_id or new_run_id()
        resumed = start_step > 0 if resumed is None else resumed
        self._started, self._closed, self._diverged = now(), False, False
        self._step, self._tokens = start_step, start_tokens
        self._start = {"start_step": start_step, "start_tokens": start_tokens}
        self._title, self._next_commands = title, list(next_commands)
        self._log_sink = logger.add(
            folder / "run.log", level="INFO", encoding="utf-8",
            format="{time:YYYY-MM-DD HH:mm:ss} {level: <7} {message}",
        )  # fmt: skip
        self._metrics = MetricsFile(folder, keep_through=start_step if resumed else None)
        # A result of an earlier segment would call this run finished while it is running.
        (folder / "result.json").unlink(missing_ok=True)
        self._scores = Scores()
        for event in self._metrics.kept:
            self._scores.add(event["step"], event)
        self._tracker = WandbTracker(
            tracker, folder, run_id=self.tracker_id, title=title,
            config={**config, "lineage": lineage},
            resumed_at=start_step if resumed else None, past=self._metrics.kept,
        )  # fmt: skip
        self._parent, self._alerts = lineage.get("parent"), tracker.alerts
        self._progress = ProgressLine(title, total_steps, start_step, start_tokens)

    def log(self, step: int, tokens: int, metrics: Mapping[str, float]) -> None:
        """Record one event.

        Args:
            step: optimizer steps done. Steps may repeat but not go back.
            tokens: tokens trained on so far.
            metrics: name to value; values that are not finite become null in metrics.jsonl.
        """
        self._step, self._tokens = step, tokens
        if not self._metrics.append(step, tokens, metrics):
            return
        improved = self._scores.add(step, metrics)
        if any(name.startswith("train/") for name in metrics):
            if "reward/mean" in metrics:  # a policy's loss says nothing to people
                self._progress.update(step, tokens, metrics["reward/mean"], "reward")
            else:
                self._progress.update(step, tokens, metrics.get("train/loss"))
        for name in ("eval/loss", "eval/accuracy"):
            if name in metrics:
                self.say(_evaluation_line(step, metrics, name, best=name in improved))
        self._diverged = not math.isfinite(metrics.get("train/loss", 0.0))
        # Last, since it wakes the W&B thread: that runs while this one waits for the device.
        self._tracker.log(step, {"tokens": tokens, **metrics})

    def samples(self, step: int, tokens: int, samples: Sequence[Sample]) -> None:
        """Write completions to samples/, show the first ones, and send them all to W&B."""
        write_samples(self.folder, step, tokens, samples)
        self._progress.samples(step, samples)
        columns = ["step", "tokens", *Sample._fields]
        rows = [[step, tokens, *sample] for sample in samples]
        if all(sample.reference is None for sample in samples):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        self._tracker.table(step, "samples", columns, rows)

    def answering(self, what: str, done: int, total: int, tokens: int) -> None:
        """Show how far it is with answers that take a while; they are no event.

        Args:
            what: is written, for people.
            done, total: answers.
            tokens: written so far.
        """
        self._progress.note(f"{what} {done}/{total}, {tokens:,} tokens")

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a table of sampled answers to samples/, and send it to W&B.

        Args:
            step: optimizer steps done.
            rows: name to text or number; the same names in each.
        """
        write_completions(self.folder, step, rows)
        self._tracker.table(
            step, "completions", ["step", *rows[0]], [[step, *row.values()] for row in rows]
        )

    def checkpoint(self, folder: Path, alias: str, metadata: Mapping[str, Any]) -> None:
        """Tell W&B where a checkpoint lies; it is not uploaded.

        Args:
            folder: of the checkpoint.
            alias: what it is known as, for instance best.
            metadata: what to say of it, as JSON data.
        """
        self._tracker.checkpoint(folder, alias, metadata)

    def say(self, message: str) -> None:
        """Print a line above the progress line, and into run.log."""
        logger.info("{}", message)

    def finish(
        self,
        status: Status,
        *,
        error: BaseException | str | None = None,
        ledger: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Close the run: result.json, report.md, W&B, closing panel. A second call does nothing.

        Args:
            status: finished, stopped (cleanly, before the last step) or failed.
            error: what went wrong; an exception keeps its type, a text has the type "Error".
            ledger: seconds per phase (`Ledger.totals()`).
            extra: further entries of result.json, for instance parameters or checkpoint.
        """
        if self._closed:
            return
        self._closed = True
        if self._parent:
            self._tracker.descends_from(self._parent)
        if self._alerts:
            text = f"step {self._step:,}, {self.folder}" + (f": {error}" if error else "")
            word = "diverged" if self._diverged else status
            self._tracker.alert(f"{self._title} {word}", text, bad=status == "failed")
        self._tracker.finish(exit_code=1 if status == "failed" else 0)
        self._progress.close()
        self._metrics.close()
        result = write_result(
            self.folder, status=status, step=self._step, tokens=self._tokens,
            started=self._started, final=self._scores.last, best=self._scores.best,
            ledger=ledger or {}, error=error_record(error), **self._start, **(extra or {}),
        )  # fmt: skip
        report = self._write_report()
        self._tracker.wait()
        self._show_closing(result, report)
        logger.remove(self._log_sink)

    def _write_report(self) -> Path | None:
        """Write report.md and plots. A failure here must not make a finished run a failed one."""
        from llm.report.report import write_report

        try:
            return write_report(self.folder)
        except Exception as error:
            logger.warning("report.md could not be written: {!r}", error)
            return None

    def _show_closing(self, result: Mapping[str, Any], report: Path | None) -> None:
        from llm.report.closing import show_closing

        show_closing(
            self.folder, title=self._title, result=result, report=report,
            tracker=self._tracker, next_commands=self._next_commands,
        )  # fmt: skip


def _evaluation_line(step: int, metrics: Mapping[str, float], name: str, best: bool) -> str:
    words = [f"step {step:,}: {name.replace('/', ' ')} {metrics[name]:.4f}"]
    if "eval/bits_per_byte" in metrics:
        words.append(f"{metrics['eval/bits_per_byte']:.4f} bits per byte")
    words += [
        f"{other.removeprefix('eval/').replace('_at_', '@')} {metrics[other]:.4f}"
        for other in metrics
        if other.startswith("eval/pass_at_")
    ]
    return ", ".join(words) + (" (best so far)" if best else "")


def error_record(error: BaseException | str | None) -> dict[str, str] | None:
    """What result.json says about what went wrong."""
    if error is None:
        return None
    kind = type(error).__name__ if isinstance(error, BaseException) else "Error"
    return {"type": kind, "message": str(error)}
