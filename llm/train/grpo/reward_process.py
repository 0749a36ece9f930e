"""Rewards at work: the program that `rewards.py` runs in a process of its own.

A reward is somebody's function, called with whatever a model writes: it may hang, also where Python
cannot interrupt it, or end the process. Here it takes nothing else with it.

Every outcome is sent as soon as it is there, so that the other side knows which call hangs.
Imports no jax, and lets no function use it on a device.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import importlib.util
import inspect
import json
import math
import numbers
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from llm.core.spec import RefusedError
from llm.train.grpo.builtin_rewards import REWARDS, prepare
from llm.train.grpo.example import Example, Outcome, Reward

_LONGEST = 200  # characters of what an error says


def find(name: str) -> Reward:
    """The function that a name means.

    Args:
        name: a key of `REWARDS`, `path/to/file.py:function` or `package.module:function`.

    Raises:
        RefusedError: there is none, or it cannot be a reward.
    """
    if name in REWARDS:
        prepare(name)
        return REWARDS[name]
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise RefusedError(
            f"rewards={name}: no such reward. Built in: {', '.join(REWARDS)}. "
            "Your own: path/to/file.py:function or package.module:function"
        )
    file = Path(place).expanduser().resolve() if place.endswith(".py") else None
    if file and not file.is_file():
        raise RefusedError(f"rewards={name}: no such file: {file}")
    try:
        module = _from_file(file) if file else importlib.import_module(place)
    except BaseException as error:  # whatever a module does, sys.exit() included
        said = f"{type(error).__name__}: {error}"
        raise RefusedError(f"rewards={name}: importing {place} failed: {said}") from None
    if not hasattr(module, attribute):
        raise RefusedError(f"rewards={name}: {place} has no function {attribute}")
    function = getattr(module, attribute)
    if not callable(function):
        kind = type(function).__name__
        raise RefusedError(f"rewards={name}: {attribute} is no function, but of type {kind}")
    if not _takes_two(function):
        raise RefusedError(f"rewards={name}: it must take two arguments, completion and example")
    return function


@functools.cache
def _from_file(file: Path) -> ModuleType:
    """A file as a module; it may import what lies beside it."""
    spec = importlib.util.spec_from_file_location(f"reward_file_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    sys.path.append(str(file.parent))
    spec.loader.exec_module(module)
    return module


def _takes_two(function: Any) -> bool:
    with contextlib.suppress(ValueError):  # functions in C need not tell their arguments
        try:
            inspect.signature(function).bind("", None)
        except TypeError:
            return False
    return True


def outcome(function: Reward, completion: str, example: Example) -> Outcome:
    """What a function makes of a completion."""
    try:
        return _number(function(completion, example))
    except BaseException as error:  # sys.exit() is a failure of this sample, too
        return _explained(error)


def _number(value: Any) -> Outcome:
    if value is None:
        return None
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a number as numpy, torch and jax have it
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        return f"returned {_short(repr(value))}"
    return float(value)


def _explained(error: BaseException) -> str:
    """What was raised, and where in the function."""
    said = f"raised {type(error).__name__}: {_short(str(error))}"
    _, *called = traceback.walk_tb(error.__traceback__)  # the first is ours
    if not called:
        return said
    frame, line = called[0]
    return f"{said} ({Path(frame.f_code.co_filename).name}, line {line})"


def _short(text: str) -> str:
    """Its beginning; a model's words may be in it, and it ends up in a terminal."""
    shown = "".join(c if c.isprintable() else " " for c in text[:_LONGEST])
    return shown if len(text) <= _LONGEST else f"{shown}..."


def serve(connection: Connection) -> None:
    """Find the functions, then apply them until there are no more requests.

    Answers in JSON: what a function does to this process must not reach the other one as a pickle.
    """
    try:
        functions = [find(name) for name in connection.recv()]
    except RefusedError as error:
        _send(connection, str(error))
        return
    _send(connection, None)
    while True:
        try:
            which, completions, examples = connection.recv()
        except EOFError:
            return
        for completion, example in zip(completions, examples, strict=True):
            _send(connection, outcome(functions[which], completion, example))


def _send(connection: Connection, answer: Outcome) -> None:
    connection.send_bytes(json.dumps(answer).encode())


def end_with_parent() -> None:
    """Standard input has nothing to read, but it ends when the parent does: so does this group.

    The kernel says so with a signal that ends a process, also one that is deep in C code and lets
    no other thread run. The thread is for systems without it.
    """
    parent = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    fcntl.fcntl(parent, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(parent, fcntl.F_SETFL, fcntl.fcntl(parent, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_wait_for_end, args=[parent], daemon=True).start()


def _wait_for_end(parent: int) -> None:
    os.read(parent, 1)
    os.killpg(0, signal.SIGKILL)


def _stay(signum: int, frame: object) -> None:
    """Nothing: the parent decides. (Unlike SIG_IGN, not handed on to what a function starts.)"""


def main(descriptor: int) -> None:
    """Serve the process that started this one, which leads a process group.

    Args:
        descriptor: an open socket to it.
    """
    signal.signal(signal.SIGINT, _stay)
    signal.signal(signal.SIGTERM, _stay)
    end_with_parent()
    os.set_inheritable(descriptor, False)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    serve(Connection(descriptor))
