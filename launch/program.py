"""A program from its words to its exit status; whatever is wrong with them is said in one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from launch.hydra_errors import explained
from launch.new_folders import forget
from launch.text_words import paths_quoted
from llm.core.spec import RefusedError, RunFailedError

MISCOMPOSED = 1  # exit status: Hydra could not make a configuration of these words
FAILED = 1  # exit status: it began, and could not go on
REFUSED = 2  # exit status: it could, and we do not accept it


def start(program: Callable[[], Any]) -> None:
    """Run an entry point; whatever is wrong with its words becomes one line on standard error.

    Exit status: 1 if Hydra cannot compose a configuration or a run cannot go on, 2 if we do not
    accept the words.
    """
    words = paths_quoted(sys.argv[1:])
    # Hydra's parser takes -m before all words or after them, not between.
    sys.argv[1:] = sorted(words, key=lambda word: word not in ("-m", "--multirun"))
    wants_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    try:
        program()
    except RefusedError as error:
        refuse(error)
    except Exception as error:
        trace = error.__traceback__
        if wants_all or trace is None:
            raise
        if isinstance(error, RunFailedError):
            sys.stderr.write(f"Failed: {error}\n")
            raise SystemExit(FAILED) from None
        while trace is not None and trace.tb_frame.f_code.co_name != "run_job":
            trace = trace.tb_next
        if trace is not None:  # a job failed: how Hydra came to run it is of no interest
            raise error.with_traceback(trace.tb_next)  # noqa: B904
        if not isinstance(error, (HydraException, OmegaConfBaseException, ValueError)):
            raise
        refuse(explained(error), MISCOMPOSED)


def refuse(reason: Exception | str, status: int = REFUSED) -> NoReturn:
    """End the program with the reason and an exit status; no folder is left of it."""
    forget()
    sys.stderr.write(f"Refused: {reason}\n")
    raise SystemExit(status)


def start_logging(level: str = "INFO", prefix: str = "") -> None:
    """Our log lines to the terminal; libraries that explain their every move are not asked to."""
    from llm.report.terminal import setup_logging

    setup_logging(level, prefix)
    for library in ("absl", "matplotlib"):
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.getLogger("jax").setLevel(logging.WARNING)  # it lists the backends that are not there
