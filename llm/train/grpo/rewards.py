"""Rewards: several functions that judge completions, in a process that may hang or die."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from loguru import logger

from llm.core.spec import RefusedError, RunFailedError
from llm.train.grpo.example import Example, Outcome
from llm.train.stopping import StopRequestedError

_START_SECONDS = 120.0  # to import somebody's modules on a busy machine
_LOOK = 0.2  # seconds between two looks at whether to stop
_LOGGED = 3  # failures per call
_SHOWN = 200  # characters of a text
# Not `python -m`: it would look for this package and the functions elsewhere than we do.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from llm.train.grpo.reward_process import main; main(int(sys.argv[2]))"
)


class RewardError(RunFailedError):
    """A reward failed wherever it applies: nothing can be learned from it."""


@dataclass(frozen=True)
class Failure:
    """A reward that was not to be had.

    Args:
        name: the reward, as in `Rewards.names`.
        index: of the sample.
        reason: such as "raised ValueError: ..." or "took longer than 10 s".
    """

    name: str
    index: int
    reason: str


class Scores(NamedTuple):
    """What completions are worth.

    Args:
        total: the weighted sum of the rewards that apply; NaN if there is none, or one failed.
        by_name: each reward without its weight; NaN where it does not apply or failed.
        failures: in the order of the rewards, then of the samples.
    """

    total: Float64[np.ndarray, " n"]
    by_name: dict[str, Float64[np.ndarray, " n"]]
    failures: list[Failure]

    def to_json(self) -> dict[str, Any]:
        """Without the failures."""
        by_name = {name: values.tolist() for name, values in self.by_name.items()}
        return {"total": self.total.tolist(), "by_name": by_name}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scores:
        """The inverse of `to_json`."""
        by_name = {name: np.array(values) for name, values in data["by_name"].items()}
        return cls(np.array(data["total"]), by_name, [])


class Rewards:
    """Several rewards and their weights, in a process of their own.

    Not to be called by several threads at once.

    Args:
        names: built-in rewards, or functions by `path/to/file.py:function` (from the current
            directory) or `package.module:function`. They take a completion and its `Example`, and
            return a number, or None if they do not apply.
        weights: one for each; none at all: each counts 1.
        timeout: seconds that one call may take.

    Raises:
        RefusedError: there is no such function, or it cannot be imported; or the arguments do not
            go together.
        stop: is asked now and then whether a stop is wanted.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        timeout: float,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        _check(names, weights, timeout)
        self.names = _short_names(names)
        self.weights = list(weights) or [1.0] * len(names)
        self._timeout = timeout
        self._stop = stop
        self._paths = list(names)
        self._folder = Path.cwd()
        self._processes: list[_Process] = []  # one while it runs, else none
        weakref.finalize(self, _stop, self._processes)
        self._running()

    def __call__(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Judge completions. A function that fails leaves no reward, which is not a reward of 0.

        Args:
            completions: what the model wrote, without special tokens.
            examples: what each of them answers.

        Raises:
            RewardError: a function failed for every completion to which it applies, and they answer
                more than one example.
            StopRequestedError: a stop was asked for.
            ValueError: there are not as many examples as completions.
        """
        if len(completions) != len(examples):
            raise ValueError(f"{len(completions)} completions and {len(examples)} examples")
        outcomes = [
            self._outcomes(which, list(completions), list(examples))
            for which in range(len(self.names))
        ]
        failures = [
            Failure(name, index, outcome)
            for name, row in zip(self.names, outcomes, strict=True)
            for index, outcome in enumerate(row)
            if isinstance(outcome, str)
        ]
        described = [_described(f, completions[f.index], examples[f.index]) for f in failures]
        _log(described)
        _refuse_hopeless(outcomes, described, examples)
        return Scores(*self._numbers(outcomes), failures)

    def _numbers(
        self, outcomes: list[list[Outcome]]
    ) -> tuple[Float64[np.ndarray, " n"], dict[str, Float64[np.ndarray, " n"]]]:
        """The weighted sums, and each reward."""
        rows = [[x if isinstance(x, float) else math.nan for x in row] for row in outcomes]
        values_RN = np.array(rows, np.float64)
        applies_RN = np.array([[x is not None for x in row] for row in outcomes], bool)
        weighted_RN = np.array(self.weights)[:, None] * values_RN
        total_N = np.where(applies_RN, weighted_RN, 0.0).sum(0)
        total_N[~applies_RN.any(0)] = math.nan
        return total_N, dict(zip(self.names, values_RN, strict=True))

    def close(self) -> None:
        """End the process; a later call starts it anew."""
        _stop(self._processes)

    def _outcomes(
        self, which: int, completions: list[str], examples: list[Example]
    ) -> list[Outcome]:
        """What a function makes of each completion."""
        outcomes: list[Outcome] = []
        while (done := len(outcomes)) < len(completions):
            process = self._running()
            try:
                process.send((which, completions[done:], examples[done:]))
                while len(outcomes) < len(completions):
                    outcomes.append(process.receive(self._timeout, self._stop))
            except _LostError as lost:  # and the rest in another process
                outcomes.append(str(lost))
                self.close()
            except BaseException:  # an interrupt: what comes next would be the answer to this
                self.close()
                raise
        return outcomes

    def _running(self) -> _Process:
        """The process, started and in possession of the functions."""
        if self._processes and not self._processes[0].alive():
            self.close()
        if not self._processes:
            self._processes.append(_Process(self._folder))
            try:
                self._processes[0].send(self._paths)
                refusal = self._processes[0].receive(_START_SECONDS, self._stop)
            except _LostError as lost:
                refusal = f"rewards={self._paths}: importing them {lost}"
            except BaseException:
                self.close()
                raise
            if refusal is not None:
                self.close()
                raise RefusedError(str(refusal))
        return self._processes[0]


def _check(names: Sequence[str], weights: Sequence[float], timeout: float) -> None:
    if not names:
        raise RefusedError("rewards=[]: expected one or more")
    if len(set(names)) < len(names):
        raise RefusedError(f"rewards={list(names)}: expected each once")
    if weights and len(weights) != len(names):
        raise RefusedError(
            f"reward_weights={list(weights)}: expected as many as rewards, {len(names)}, or none"
        )
    if not all(map(math.isfinite, weights)):
        raise RefusedError(f"reward_weights={list(weights)}: expected finite numbers")
    if not 0 < timeout < math.inf:
        raise RefusedError(f"reward_timeout={timeout}: expected a number of seconds greater than 0")


def _short_names(names: Sequence[str]) -> list[str]:
    """Names for metrics: a function's own, with a number if it is not the first of that name."""
    seen: Counter[str] = Counter()
    short = []
    for name in names:
        last = name.rpartition(":")[2]
        seen[last] += 1
        short.append(last if seen[last] == 1 else f"{last}#{seen[last]}")
    return short


def _described(failure: Failure, completion: str, example: Example) -> str:
    prompt = str(example.messages[-1].get("content")) if example.messages else ""
    return (
        f"{failure.name} {failure.reason}; prompt: {_shown(prompt)}; "
        f"completion: {_shown(completion)}"
    )


def _shown(text: str) -> str:
    """A text on one line: its beginning, and its end, where answers are."""
    half = _SHOWN // 2
    return repr(text if len(text) <= _SHOWN else f"{text[:half]} [...] {text[-half:]}")


def _log(failures: list[str]) -> None:
    for failure in failures[:_LOGGED]:
        logger.warning("No reward: {}", failure)
    if len(failures) > _LOGGED:
        logger.warning("No reward: {} more", len(failures) - _LOGGED)


def _refuse_hopeless(
    outcomes: list[list[Outcome]], described: list[str], examples: Sequence[Example]
) -> None:
    """Raise if a reward failed and did not succeed once; `described` are all failures in order.

    One example alone may be at fault itself.
    """
    first = 0
    for row in outcomes:
        failed = [i for i, outcome in enumerate(row) if isinstance(outcome, str)]
        succeeded = any(isinstance(outcome, float) for outcome in row)
        if not succeeded and len({id(examples[i]) for i in failed}) > 1:
            raise RewardError(f"A reward failed wherever it applies: {described[first]}")
        first += len(failed)


class _LostError(Exception):
    """The process is of no use any more; says what it did."""


class _Process:
    """The running program, and a socket to it."""

    def __init__(self, folder: Path) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, path, str(theirs.fileno())],
                stdin=subprocess.PIPE,  # ends with us, which ends the process
                stdout=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is not meant for it, and its own children are
            )

    def alive(self) -> bool:
        return self._popen.poll() is None

    def send(self, request: Any) -> None:
        try:
            self._connection.send(request)
        except OSError:
            raise _LostError(self._fate()) from None

    def receive(self, seconds: float, stop: Callable[[], bool]) -> Outcome:
        """Its next answer, for which it has so much time, unless a stop is asked for."""
        deadline = time.monotonic() + seconds
        try:
            while not self._connection.poll(min(_LOOK, max(deadline - time.monotonic(), 0))):
                if stop():
                    raise StopRequestedError
                if time.monotonic() >= deadline:
                    raise _LostError(f"took longer than {seconds:g} s")
            answer: Outcome = json.loads(self._connection.recv_bytes())
            return answer
        except (EOFError, OSError):
            raise _LostError(self._fate()) from None

    def _fate(self) -> str:
        status = self.end()
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        return f"ended its process ({how})"

    def end(self) -> int:
        """Its exit status. If it is still running, it no longer is, nor is what it has started."""
        if self._popen.returncode is None:  # else its number may be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._connection.close()
        assert self._popen.stdin
        self._popen.stdin.close()
        return self._popen.wait()


def _stop(processes: list[_Process]) -> None:
    while processes:
        processes.pop().end()
