"""Weights & Biases, kept at arm's length: it may be slow, broken or absent, training goes on.

Everything W&B does, its import included, happens on one daemon thread that empties a bounded queue.
The training loop only appends to that queue. What W&B misses is in metrics.jsonl all the same.
"""

from __future__ import annotations

import importlib
import secrets
import string
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from llm.report.specs import TrackerSpec
from llm.report.wandb_artifacts import checkpoint_artifact, parent_artifact
from llm.report.wandb_resume import Event, Rows, last_step_on_disk
from llm.report.wandb_service import end_service, give_way, has_lost_service
from llm.report.wandb_start import (
    brief,
    choose_mode,
    environment_mode,
    initialise,
    prepare_for_tables,
    set_environment,
)
from llm.report.wandb_summary import Summary, aggregate_of

_CAPACITY = 10_000  # events; at one per 50 ms step that is 8 minutes of a hung W&B
_INIT_SECONDS = 15.0  # for reaching the server; a short run must still have time to go offline
_PATIENCE = 75.0  # seconds after which a start-up that says nothing is called hung
_FINISH_SECONDS = 30.0
_LINEAGE_SECONDS = 5.0
_PAUSE = 1.0  # seconds between two lots of events: one by one they cost W&B several times as much
_Job = Callable[[Any, Any], None]  # takes the wandb module and the run


def new_run_id() -> str:
    """A fresh W&B run id: eight letters and digits, made without asking W&B."""
    alphabet = string.ascii_lowercase + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(8))


class WandbTracker:
    """One W&B run. No method raises or waits for W&B, but `wait`, which has a time limit."""

    def __init__(
        self,
        spec: TrackerSpec,
        folder: Path,
        *,
        run_id: str,
        title: str,
        config: Mapping[str, Any],
        resumed_at: int | None = None,
        past: Sequence[Event] = (),
        load: Callable[[], Any] = lambda: importlib.import_module("wandb"),
        capacity: int = _CAPACITY,
    ):
        """Start the thread.

        Args:
            spec: mode, project, tags and so on.
            folder: the run folder; W&B's own folder `wandb` goes into it.
            run_id: the id in W&B; the id of an earlier run continues that one.
            title: the run's name in W&B unless `spec.name` is set.
            config: the resolved configuration and where the run comes from.
            resumed_at: steps that the checkpoint to go on from had done, if W&B may know this run.
            past: events of metrics.jsonl up to there; W&B gets those that it does not have.
            load: returns the wandb module (tests put something else in).
            capacity: events that may wait; beyond that the oldest are dropped.
        """
        self.url: str | None = None
        self.directory: Path | None = None
        self._spec, self._folder, self._run_id = spec, folder.absolute(), run_id
        self._title, self._config = title, config
        self._resumed_at, self._past = resumed_at, past
        self._load, self._capacity = load, capacity
        self._rows = Rows(None, 0)
        self._summary = Summary()
        self._defined: set[str] = set()  # metrics
        self._queue: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._exit_code: int | None = None  # set: send what is queued, then finish
        self._state = "starting"  # then running, then done or broken
        self._said: set[str] = set()
        self._wandb: Any = None
        self._born = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if spec.mode == "disabled" or (spec.mode == "auto" and environment_mode() == "disabled"):
            self._state = "off"
        else:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue one event; `metrics` includes `tokens`, the x axis of every chart."""
        values = dict(metrics)

        def send(_: Any, run: Any) -> None:
            self._summary.add(values)
            self._send(run, self._rows.row(step), values)

        self._put(send)

    def table(self, step: int, name: str, columns: Sequence[str], rows: list[list[Any]]) -> None:
        """Queue a table."""

        def send(wandb: Any, run: Any) -> None:
            if (row := self._rows.row(step)) is not None:
                run.log({name: wandb.Table(columns=list(columns), data=rows)}, step=row)

        self._put(send)

    def checkpoint(self, folder: Path, alias: str, metadata: Mapping[str, Any]) -> None:
        """Queue a reference to a checkpoint of this run; its files stay where they are.

        Args:
            folder: of the checkpoint.
            alias: what it is known as, for instance best.
            metadata: what to say of it.
        """

        def send(wandb: Any, run: Any) -> None:
            artifact = checkpoint_artifact(wandb, self._run_id, folder, metadata)
            run.log_artifact(artifact, aliases=[alias])

        self._put(send)

    def descends_from(self, parent: Mapping[str, Any]) -> None:
        """Queue an edge of W&B's lineage graph; offline W&B has none, and config.lineage tells it.

        Args:
            parent: the lineage that `llm.hub` tells of pretrained weights.
        """

        def send(wandb: Any, run: Any) -> None:
            artifact = parent_artifact(wandb, parent) if self.url else None
            if artifact is None:
                return

            def use() -> None:
                try:
                    run.use_artifact(artifact)
                except Exception as error:
                    self._warn(f"W&B did not take where the run comes from ({brief(error)}).")

            # W&B waits for its server here, for ever if need be.
            thread = threading.Thread(target=use, name="wandb-lineage", daemon=True)
            thread.start()
            thread.join(_LINEAGE_SECONDS)

        self._put(send)

    def alert(self, title: str, text: str, *, bad: bool) -> None:
        """Queue a message to the user, by mail or Slack as their W&B settings say."""
        level = "ERROR" if bad else "INFO"
        self._put(lambda _, run: run.alert(title=title, text=text, level=level))

    def finish(self, exit_code: int) -> None:
        """Ask for the end: send what is queued and mark the run finished (0) or failed (1)."""
        with self._changed:
            self._exit_code = exit_code
            self._changed.notify()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for W&B to finish, at most `seconds`; then leave it, so that the process can exit.

        Args:
            seconds: half a minute by default.

        Returns:
            Whether W&B has everything it can get (also true if it was off or broke before).
        """
        if self._state == "off":
            return True
        try:
            self._thread.join(_FINISH_SECONDS if seconds is None else seconds)
        except KeyboardInterrupt:  # all else is done: the user only wants to stop waiting
            logger.info("not waiting for W&B any longer")
        if not self._thread.is_alive():
            return self._state in ("done", "off")
        self._state = "abandoned"
        logger.warning("W&B does not answer; the run ends without it. {}", self.sync_hint())
        end_service(self._wandb)
        return False

    def sync_hint(self) -> str:
        """How W&B gets later what is on this disk."""
        if self.url is None:  # all offline parts, in order
            return f"To upload it later: wandb sync {self._folder / 'wandb'}"
        if self._resumed_at is None:
            return f"To upload it later: wandb sync --include-online {self.directory}"
        # W&B would renumber the steps of a part that it has a part of.
        return f"To complete it later: python launch/main.py resume={self._folder}"

    def _put(self, job: _Job) -> None:
        if self._state in ("off", "broken", "abandoned"):
            return
        dropped = False
        with self._changed:
            if len(self._queue) >= self._capacity:
                self._queue.popleft()
                dropped = True
            self._queue.append(job)
        if dropped:
            self._warn(
                f"W&B is more than {self._capacity} events behind: its oldest waiting events are "
                "dropped. metrics.jsonl has them all."
            )
        elif self._state == "starting" and time.monotonic() - self._born > _PATIENCE:
            self._warn(
                f"W&B has not started after {_PATIENCE:.0f} s. The run goes on; "
                "metrics.jsonl has everything."
            )

    def _work(self) -> None:
        """The thread: start a run, send jobs until asked to finish, finish."""
        try:
            set_environment(self._folder)
            self._wandb = self._load()
            run = self._start(self._wandb)
            if run is None:
                return
            self._state = "running"
            self._sum_up(run, self._past)
            for step, metrics in self._rows.missing(self._past):
                self._send(run, step, metrics)
            while job := self._next():
                try:
                    job(self._wandb, run)
                except Exception as error:
                    self._warn(f"W&B did not take an event ({brief(error)}). The run goes on.")
            self._sum_up(run)
            run.finish(exit_code=self._exit_code)
            self._state = "done"
        except BaseException as error:  # W&B also raises SystemExit; nothing of it may leave here
            if self._state == "abandoned":
                return
            self._state = "broken"
            self._queue.clear()
            self._warn(f"W&B failed ({brief(error)}). The run goes on without it.")
            if has_lost_service(self._wandb):
                end_service(self._wandb)

    def _sum_up(self, run: Any, past: Sequence[Event] = ()) -> None:
        """Write the summary of a continued run: W&B's own would be that of its newest part."""
        for event in past:
            self._summary.add({k: v for k, v in event.items() if "/" in k})
        if self._past:
            for name, values in self._summary.to_json().items():
                self._define(run, name)
                run.summary[name] = values

    def _define(self, run: Any, name: str) -> None:
        """Tell W&B, once, what to show of a metric in its tables."""
        if name not in self._defined and (aggregate := aggregate_of(name)):
            summary = "none" if self._past else f"{aggregate},last"
            run.define_metric(name, step_metric="tokens", summary=summary)
        self._defined.add(name)

    def _send(self, run: Any, row: int | None, metrics: Mapping[str, float]) -> None:
        """Log metrics; not at all without a row."""
        if row is None:
            return
        for name in metrics:
            self._define(run, name)
        run.log(dict(metrics), step=row)

    def _next(self) -> _Job | None:
        """The next job, waiting for the next lot; None when finishing and nothing is left."""
        with self._changed:
            while not self._queue:
                if self._exit_code is not None:
                    return None
                self._changed.wait(_PAUSE)
            return self._queue.popleft()

    def _start(self, wandb: Any) -> Any:
        """Initialise the run; from online fall back to offline. None if W&B is switched off."""
        mode, why = choose_mode(wandb, self._spec)
        if mode == "disabled":
            self._state = "off"
            return None
        try:
            run = self._initialise(wandb, mode)
        except Exception as error:
            if mode == "offline":
                raise
            why = f"online failed: {brief(error)}"
            mode = "offline"
            # W&B's service still holds the id of the run that it could not start, and would try to
            # reach the server once more when Python exits: a new service knows nothing of it.
            end_service(wandb)
            run = self._initialise(wandb, mode)
        if mode == "online":
            prepare_for_tables(wandb, run)
        give_way(wandb)
        run.define_metric("tokens", hidden=True)
        run.define_metric("*", step_metric="tokens")
        if self._resumed_at is not None:
            self._rows = Rows(self._last_step(run, mode), self._resumed_at)
        self.directory = Path(run.dir).parent if run.dir else None
        self.url = run.url if mode == "online" else None
        if self.url:
            logger.info("W&B: online, {}", self.url)
        elif "failed" in why:
            logger.warning("W&B: offline ({}). {}", why, self.sync_hint())
        else:
            logger.info("W&B: offline ({}), in {}", why, self._folder / "wandb")
        return run

    def _initialise(self, wandb: Any, mode: str) -> Any:
        return initialise(
            wandb,
            self._spec,
            self._folder,
            mode=mode,
            run_id=self._run_id,
            title=self._title,
            config=self._config,
            resumed=self._resumed_at is not None,
            init_seconds=_INIT_SECONDS,
            finish_seconds=_FINISH_SECONDS / 2,  # the other half is for the last tables
        )

    def _last_step(self, run: Any, mode: str) -> int | None:
        """The newest step that W&B has of this run; None if it has none."""
        if mode == "online":
            return run.starting_step - 1 if run.starting_step else None
        try:
            return last_step_on_disk(self._folder, self._run_id)
        except Exception as error:
            self._warn(
                f"W&B's files of this run's earlier part cannot be read ({brief(error)}). "
                "A later `wandb sync` may renumber steps; metrics.jsonl has them as they are."
            )
            return self._resumed_at

    def _warn(self, message: str) -> None:
        """Say it once. The kind of a message is its first words."""
        kind = message[:24]
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("{}", message)
