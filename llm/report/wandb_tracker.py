"""Weights & Biases, kept at arm's length: it may be slow, broken or absent, training goes on.

Everything W&B does, its import included, happens on one daemon thread that empties a bounded queue.
The training loop only appends to that queue. What W&B misses is in metrics.jsonl all the same.
"""

from __future__ import annotations

import importlib
import os
import secrets
import string
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from loguru import logger

from llm.report.json_files import strict
from llm.report.specs import TrackerSpec

_CAPACITY = 10_000  # events; at one per 50 ms step that is 8 minutes of a hung W&B
_INIT_SECONDS = 15.0  # for reaching the server; a short run must still have time to go offline
_PATIENCE = 75.0  # seconds after which a start-up that says nothing is called hung
_FINISH_SECONDS = 30.0
_BEST_AND_LAST = ("train/loss", "eval/loss", "eval/bits_per_byte")
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
        resumed: bool = False,
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
            resumed: this continues a run that W&B may know.
            load: returns the wandb module (tests put something else in).
            capacity: events that may wait; beyond that the oldest are dropped.
        """
        self.url: str | None = None
        self.directory: Path | None = None
        self._spec, self._folder, self._run_id = spec, folder.absolute(), run_id
        self._title, self._config, self._resumed = title, config, resumed
        self._load, self._capacity = load, capacity
        self._queue: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._exit_code: int | None = None  # set: send what is queued, then finish
        self._state = "starting"  # then running, then done or broken
        self._said: set[str] = set()
        self._wandb: Any = None
        self._born = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if spec.mode == "disabled" or (spec.mode == "auto" and _environment_mode() == "disabled"):
            self._state = "off"
        else:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue one event; `metrics` includes `tokens`, the x axis of every chart."""
        values = dict(metrics)
        self._put(lambda _, run: run.log(values, step=step))

    def table(self, step: int, name: str, columns: Sequence[str], rows: list[list[Any]]) -> None:
        """Queue a table."""

        def send(wandb: Any, run: Any) -> None:
            run.log({name: wandb.Table(columns=list(columns), data=rows)}, step=step)

        self._put(send)

    def finish(self, exit_code: int) -> None:
        """Ask for the end: send what is queued and mark the run finished (0) or failed (1)."""
        with self._changed:
            self._exit_code = exit_code
            self._changed.notify()

    def wait(self, seconds: float = _FINISH_SECONDS) -> bool:
        """Wait for W&B to finish, at most `seconds`; then leave it, so that the process can exit.

        Returns:
            Whether W&B has everything it can get (also true if it was off or broke before).
        """
        if self._state == "off":
            return True
        try:
            self._thread.join(seconds)
        except KeyboardInterrupt:  # all else is done: the user only wants to stop waiting
            logger.info("not waiting for W&B any longer")
        if not self._thread.is_alive():
            return self._state in ("done", "off")
        self._state = "abandoned"
        logger.warning("W&B does not answer; the run ends without it. {}", self.sync_hint())
        self._end_service()
        return False

    def sync_hint(self) -> str:
        """How to upload later what is on this disk."""
        where = self.directory or self._folder / "wandb"
        return f"To upload it later: wandb sync {where}"

    def _put(self, job: _Job) -> None:
        if self._state in ("off", "broken", "abandoned"):
            return
        dropped = False
        with self._changed:
            if len(self._queue) >= self._capacity:
                self._queue.popleft()
                dropped = True
            self._queue.append(job)
            self._changed.notify()
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
            _set_environment(self._folder)
            self._wandb = self._load()
            run = self._start(self._wandb)
            if run is None:
                return
            self._state = "running"
            while job := self._next():
                try:
                    job(self._wandb, run)
                except Exception as error:
                    self._warn(f"W&B did not take an event ({_brief(error)}). The run goes on.")
            run.finish(exit_code=self._exit_code)
            self._state = "done"
        except BaseException as error:  # W&B also raises SystemExit; nothing of it may leave here
            if self._state == "abandoned":
                return
            self._state = "broken"
            self._queue.clear()
            self._warn(f"W&B failed ({_brief(error)}). The run goes on without it.")
            if self._service_process() and self._service_process().poll() is not None:
                self._end_service()

    def _next(self) -> _Job | None:
        """The next job, waiting for one; None when finishing and nothing is left."""
        with self._changed:
            while not self._queue:
                if self._exit_code is not None:
                    return None
                self._changed.wait()
            return self._queue.popleft()

    def _start(self, wandb: Any) -> Any:
        """Initialise the run; from online fall back to offline. None if W&B is switched off."""
        mode, why = self._choose_mode(wandb)
        if mode == "disabled":
            self._state = "off"
            return None
        try:
            run = self._initialise(wandb, mode)
        except Exception as error:
            if mode == "offline":
                raise
            why = f"online failed: {_brief(error)}"
            mode = "offline"
            # W&B's service still holds the id of the run that it could not start, and would try to
            # reach the server once more when Python exits: a new service knows nothing of it.
            self._end_service()
            run = self._initialise(wandb, mode)
        run.define_metric("tokens", hidden=True)
        run.define_metric("*", step_metric="tokens")
        for name in _BEST_AND_LAST:
            run.define_metric(name, step_metric="tokens", summary="min,last")
        self.directory = Path(run.dir).parent if run.dir else None
        self.url = run.url if mode == "online" else None
        if self.url:
            logger.info("W&B: online, {}", self.url)
        elif "failed" in why:
            logger.warning("W&B: offline ({}). {}", why, self.sync_hint())
        else:
            logger.info("W&B: offline ({}), in {}", why, self._folder / "wandb")
        return run

    def _choose_mode(self, wandb: Any) -> tuple[str, str]:
        """online, offline or disabled, with the reason in words."""
        if self._spec.mode != "auto":
            return self._spec.mode, f"tracker.mode={self._spec.mode}"
        if mode := _environment_mode():
            return mode, f"WANDB_MODE={mode}"
        try:
            logged_in = wandb.login(prompt=False, verify=False)
        except Exception as error:
            return "offline", f"login failed: {_brief(error)}"
        return ("online", "logged in") if logged_in else ("offline", "not logged in")

    def _initialise(self, wandb: Any, mode: str) -> Any:
        spec = self._spec
        return wandb.init(
            mode=mode,
            id=self._run_id,
            resume="allow" if self._resumed else None,
            # Without it a run that somebody else left open would swallow this one.
            reinit="create_new",
            dir=str(self._folder),
            project=spec.project,
            entity=spec.entity,
            group=spec.group,
            job_type=spec.job_type,
            tags=list(spec.tags),
            name=spec.name or self._title,
            notes=spec.notes,
            config=strict(self._config),
            allow_val_change=True,  # a resumed run may have more steps
            settings=wandb.Settings(
                console="off",  # it would wrap stdout under the progress display
                silent=True,
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS - 8,  # W&B gives up before `wait` does
                disable_code=True,
                disable_job_creation=True,
            ),
        )

    def _warn(self, message: str) -> None:
        """Say it once. The kind of a message is its first words."""
        kind = message[:24]
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("{}", message)

    def _service_process(self) -> Any:
        """W&B's background process if this process started it. W&B has no public way to ask."""
        try:
            return self._wandb.setup()._connection._proc._process
        except Exception:
            return None

    def _end_service(self) -> None:
        """End W&B's background process and forget it.

        Else W&B waits for it when Python exits, if need be for ever, and a next run in this process
        would be sent to it too. What it has written to disk can be synced later.
        """

        def teardown() -> None:
            with suppress(BaseException):
                self._wandb.teardown()

        if process := self._service_process():
            process.kill()
            thread = threading.Thread(target=teardown, name="wandb-teardown", daemon=True)
            thread.start()
            thread.join(5.0)


def _environment_mode() -> str | None:
    """What the user's WANDB_MODE asks for, in today's words."""
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    mode = {"run": "online", "dryrun": "offline"}.get(mode, mode)
    return mode if mode in ("online", "offline", "disabled") else None


_staged: dict[str, str] = {}


def _set_environment(folder: Path) -> None:
    """Make W&B quiet and have it put its own files into the run folder.

    What the user's environment says about these goes first.

    Offline, W&B's log refers to staged files by path until it is synced, so they stay with it.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    # W&B's reports about its own errors: where its server cannot be reached, they hold up the exit.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    for name, below in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        if os.environ.get(name) in (None, _staged.get(name)):
            _staged[name] = os.environ[name] = str(folder / "wandb" / ".staging" / below)


def _brief(error: BaseException) -> str:
    """An error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
