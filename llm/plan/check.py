"""Will it fit? Asked before a run begins."""

from __future__ import annotations

from pathlib import Path

import jax
from loguru import logger

from llm.core.machine import Machine
from llm.core.spec import RefusedError
from llm.plan.estimate import Estimate, UnknownVocabularyError, estimate, gib
from llm.plan.remedies import remedies
from llm.plan.target import Target, target_here
from llm.train.experiment import ExperimentSpec
from llm.train.origin import Origin


def check_fits(experiment: ExperimentSpec, machine: Machine, folder: Path) -> None:
    """Look at an experiment on the devices that it is about to run on, in this folder.

    `experiment.plan` says what to do if it cannot fit: refuse, warn, or do not look (off).

    Raises:
        RefusedError: it cannot fit; with what would.
    """
    if experiment.plan == "off":
        return
    target = target_here(machine, timing=False)
    if target is None:
        logger.info("Whether it fits is not looked at: the device does not say its memory.")
        return
    try:
        problem = why_not(experiment, target, len(jax.devices()), folder)
    except UnknownVocabularyError:
        logger.info("Whether it fits is not looked at: its tokenizer is not on this machine yet.")
        return
    if problem is None:
        return
    message = f"{problem}plan=warn starts it all the same."
    if machine.note:
        message += f" (That is what it would run on: {machine.note})"
    if experiment.plan == "refuse":
        raise RefusedError(message)
    logger.warning(message)


def why_not(experiment: ExperimentSpec, target: Target, devices: int, folder: Path) -> str | None:
    """Why an experiment cannot fit, and what would; None if it fits.

    Args:
        experiment: what is to run.
        target: what it is to run on.
        devices: that there are.
        folder: of the run, which may have begun.

    Raises:
        RefusedError: it is not the model whose weights it is to begin with.
        UnknownVocabularyError: the size of the vocabulary depends on what is not read here.
    """
    found = estimate(experiment, target, Origin(experiment, folder).vocabulary())
    return None if found.fits else f"{what_is_missing(found)} {what_to_change(found, devices)}"


def what_is_missing(found: Estimate) -> str:
    """The memory that is needed, and that there is."""
    stage = found.peak
    parts = sorted(stage.need.parts.items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {gib(size):.1f}" for name, size in parts)
    return (
        f"this run does not fit: its {stage.name} needs {gib(stage.need.total):.1f} GiB "
        f"({largest}, ...) and {found.target.name} has {gib(found.target.memory):.1f} GiB."
    )


def what_to_change(found: Estimate, devices: int) -> str:
    """Words that would make it fit, if there are any."""
    ways = [
        f"{' '.join(r.words)} ({gib(r.estimate.peak.need.total):.1f} GiB)"
        for r in remedies(found, devices)
    ]
    return f"It would fit with {', or '.join(ways)}. " if ways else ""
