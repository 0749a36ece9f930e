"""The progress line: a live one in a terminal, a log line now and then anywhere else."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from loguru import logger
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from llm.report.numbers import clock, si
from llm.report.samples import Sample, printable
from llm.report.terminal import console, logs_above_display

_PLAIN_EVERY = 10.0  # seconds between log lines where no live line is possible
_WINDOW = 30  # log events that the speed is measured over
_SMOOTHING = 0.9
_PANEL_LINES = 6
_PANEL_SAMPLES = 2


class ProgressLine:
    """Shows step, smoothed loss or reward, tokens per second and the time that is left."""

    def __init__(
        self,
        title: str,
        total: int,
        start_step: int = 0,
        start_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Show the line.

        Args:
            title: first word of the line.
            total: steps of the whole run.
            start_step, start_tokens: where this process takes over.
            clock: returns seconds, never going back.
        """
        self._total, self._clock = total, clock
        self._marks = deque([(clock(), start_step, start_tokens)], maxlen=_WINDOW)
        self._sum, self._weight = 0.0, 0.0
        self._last_plain = self._last_note = -math.inf
        self._last_line = ""
        self._open = ExitStack()
        self._live: Progress | None = None
        if console.is_terminal:
            self._open.enter_context(logs_above_display())
            self._live = self._open.enter_context(_live_line())
            self._task = self._live.add_task(
                title, total=total, completed=start_step, name="loss", value="-", rate="-", left="-"
            )

    def update(self, step: int, tokens: int, value: float | None, name: str = "loss") -> None:
        """Take in a training event.

        Args:
            step, tokens: done so far.
            value: of this step; None or not finite, then it does not count. Shown is a mean over
                steps, the last of which count most.
            name: of the value.
        """
        now = self._clock()
        if step > self._marks[-1][1]:
            self._marks.append((now, step, tokens))
        if value is not None and math.isfinite(value):
            self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * value
            self._weight = _SMOOTHING * self._weight + 1 - _SMOOTHING
        shown = f"{self._sum / self._weight:.3f}" if self._weight else "-"
        tokens_rate, left = self._speed(step)
        if self._live:
            self._live.update(
                self._task, completed=step, name=name, value=shown, rate=tokens_rate, left=left
            )
        self._last_line = (
            f"step {step:,}/{self._total:,}  mean {name} {shown}  {tokens_rate} tok/s  {left} left"
        )
        if not self._live and (now - self._last_plain >= _PLAIN_EVERY or step >= self._total):
            self._last_plain = now
            logger.info("{}", self._last_line)
            self._last_line = ""

    def note(self, text: str) -> None:
        """Show what is going on between two events."""
        if self._live:
            self._live.update(self._task, left=text)
        elif self._clock() - max(self._last_plain, self._last_note) >= _PLAIN_EVERY:
            self._last_note = self._clock()
            logger.info("{}", text)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Show the first few completions, shortened, prompt and completion told apart."""
        body = Text()
        for i, (prompt, completion, _) in enumerate(samples[:_PANEL_SAMPLES]):
            body.append("\n\n" if i else "")
            body.append(_shorten(prompt, from_end=True), "dim")
            body.append(_shorten(completion))
        title = Text(f"sample at step {step:,}", "bold")
        console.print(Panel(body, title=title, title_align="left", border_style="dim"))

    def close(self) -> None:
        """Take the live line down; idempotent."""
        self._open.close()
        if self._last_line and not self._live:
            logger.info("{}", self._last_line)
        self._last_line = ""

    def _speed(self, step: int) -> tuple[str, str]:
        """Tokens per second and time left in words, measured over the last events."""
        (t0, step0, tokens0), (t1, step1, tokens1) = self._marks[0], self._marks[-1]
        if t1 <= t0 or step1 <= step0:
            return "-", "-"
        left = (self._total - step) * (t1 - t0) / (step1 - step0)
        return si((tokens1 - tokens0) / (t1 - t0)), clock(left)


def _live_line() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
        TextColumn("[dim]step[/] {task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("[dim]mean {task.fields[name]}[/] {task.fields[value]}"),
        TextColumn("{task.fields[rate]} [dim]tok/s[/]"),
        TextColumn("[dim]left[/] {task.fields[left]}"),
        console=console,
        refresh_per_second=2,  # each refresh takes a millisecond or two from the training thread
        expand=True,
    )


def _shorten(text: str, from_end: bool = False) -> str:
    """At most a few lines of `text`: its end (of a prompt) or its beginning."""
    lines = text.split("\n")
    if len(lines) > _PANEL_LINES:
        lines = ["...", *lines[-_PANEL_LINES:]] if from_end else [*lines[:_PANEL_LINES], "..."]
    limit = 80 * _PANEL_LINES
    text = "\n".join(lines)
    if len(text) > limit:
        text = "..." + text[-limit:] if from_end else text[:limit] + "..."
    return printable(text)
