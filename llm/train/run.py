"""One run from its spec: build the parts, hand them to the loop, leave the folder in order."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from loguru import logger

from llm.core.allocator import keep_freed_memory
from llm.core.compilations import Compilations
from llm.core.hosts import is_first, said_by_first, several
from llm.core.machine import claim
from llm.core.mesh import host_share, put_rows
from llm.core.spec import RefusedError
from llm.hub.checkpoints import Checkpoints, Restored
from llm.hub.tokenizer_files import save_tokenizer
from llm.models.kernels import check_kernel
from llm.report.json_files import read_json
from llm.report.ledger import Ledger
from llm.report.lineage import tokenizer_run
from llm.report.run_files import note_resume, now, write_result, write_run
from llm.report.run_report import RunReport
from llm.report.silent_report import SilentReport
from llm.train.compiled import Compiled
from llm.train.experiment import ExperimentSpec
from llm.train.loop import Loop, Progress
from llm.train.meaning_of_last import meaning_of_last, with_meaning
from llm.train.origin import Origin
from llm.train.parts import Parts
from llm.train.run_folder import check_run_folder
from llm.train.state import StateFactory, TrainState
from llm.train.step_report import StepReport
from llm.train.step_trace import StepTrace
from llm.train.stopping import StopSignal
from llm.train.trainable import n_frozen_matmul, split
from llm.train.trainer import Source, Workbench
from llm.train.variant import variant


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: str
    """`finished` or `stopped`; a failed run raises instead."""
    step: int
    objective: float | None
    """What runs are compared by, see `ExperimentSpec.objective`; None if it was not measured."""
    left_behind: bool
    """A compilation still runs: the process must end with `os._exit`."""


def run(
    experiment: ExperimentSpec,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    stop: StopSignal | None = None,
) -> Outcome:
    """Run (or continue) an experiment in its folder.

    Args:
        experiment: what to do.
        folder: the run's folder; created if missing. If it holds a run already, `resume` must say
            so in the spec, and training goes on from its newest good checkpoint.
        overrides: the words of the command line, for run.json.
        stop: an open one, if the caller catches signals already.

    Raises:
        RefusedError: something cannot work; nothing was trained.
        DivergedError: the loss is no longer a number.
    """
    check_run_folder(experiment, folder)
    begun = read_json(folder / "run.json")
    last = begun.get("last", {}) if begun else meaning_of_last(experiment)
    experiment = with_meaning(experiment, last)
    ledger = Ledger()
    folder.mkdir(parents=True, exist_ok=True)
    with nullcontext(stop) if stop else StopSignal() as signals, Compilations() as compilations:
        return _Run(experiment, folder, tuple(overrides), last, ledger, compilations, signals).go()


class _Run:
    """The parts of one run, made in the order they need each other."""

    def __init__(
        self,
        experiment: ExperimentSpec,
        folder: Path,
        overrides: tuple[str, ...],
        last: dict[str, str],
        ledger: Ledger,
        compilations: Compilations,
        stop: StopSignal,
    ) -> None:
        self.experiment = experiment
        self.folder = folder
        self.overrides = overrides
        self.last = last
        self.ledger = ledger
        self.compilations = compilations
        self.stop = stop

    def go(self) -> Outcome:
        try:
            with self.ledger("prepare"):
                self.machine = claim(self.experiment.hardware)
                if self.machine.note:
                    logger.warning(self.machine.note)
                if several():
                    self.stop.share(self.machine.mesh)
                hardware = self.machine.spec
                origin = Origin(self.experiment, self.folder)
                self.chat = origin.chat()
                share = host_share(self.machine.mesh)
                self.trainer = self.experiment.trainer.build(self.experiment, origin, share)
                self.tokenizer = self.trainer.tokenizer
                self.stop_ids = origin.stop_ids(self.tokenizer)
                self.chat_template = origin.chat_template
                self.model = origin.model(self.tokenizer)
                check_kernel(hardware.attention, self.model, hardware.compute_dtype)
                if self.machine.device.platform == "cpu":
                    keep_freed_memory()
                self.parts = self._parts()
                factory = self.parts.factory
                checkpoints = self._checkpoints()
                restored = checkpoints.restore_newest(factory.template)
                parent, state = self._first_state(factory, restored, origin)
                report = self._report(parent, restored, _count(state.params))
        except Exception as error:
            self._note_failure(error)
            raise
        try:
            loop, source = self._loop(checkpoints, report, restored, parent)
            try:
                state, status = loop.run(state, source)
            finally:
                source.close()
            with self.ledger("checkpoint"):
                checkpoints.wait()
            _tell_checkpoints(checkpoints, report)
            checkpoints.close()
        except BaseException as error:
            report.finish(
                "failed",
                error=error,
                ledger=self.ledger.totals(),
                extra={"compilations": self.compilations.to_json()},
            )
            raise
        report.finish(
            "finished" if status == "finished" else "stopped",
            ledger=self.ledger.totals(),
            extra={
                "parameters": _count(state.params),
                "checkpoint": loop.saved,
                "compilations": self.compilations.to_json(),
            },
        )
        if several():  # who leaves first would not wait long for the one that writes the report
            said_by_first("")
        return Outcome(
            status,
            int(state.step),
            self.experiment.goal.of(read_json(self.folder / "result.json")),
            self.stop.left_behind,
        )

    def _note_failure(self, error: Exception) -> None:
        """Before there is a report: say in result.json why there is no run."""
        if not (self.folder / "result.json").exists():
            record = {"type": type(error).__name__, "message": str(error)}
            write_result(
                self.folder, status="failed", step=0, tokens=0, started=now(), final={}, best={},
                ledger=self.ledger.totals(), error=record, overrides=self.overrides,
            )  # fmt: skip

    def _parts(self) -> Parts:
        machine = self.machine
        return Parts(
            self.experiment, self.model, machine.spec, machine.device.platform, machine.mesh
        )

    def _checkpoints(self) -> Checkpoints:
        spec = self.experiment.checkpoint
        background = self.machine.device.platform != "cpu"
        return Checkpoints(
            self.folder / "checkpoints",
            keep=spec.keep,
            keep_best=spec.keep_best,
            background=background,
        )

    def _first_state(
        self, factory: StateFactory, restored: Restored | None, origin: Origin
    ) -> tuple[dict[str, Any] | None, TrainState]:
        """The state to begin with, and what it descends from."""
        if restored is not None:
            if restored.meta["fingerprint"] != self.trainer.fingerprint:
                raise RefusedError(
                    f"resume: the data of {self.folder} is not what it was (another Python, "
                    "changed files or another tokenizer); the run cannot go on with it"
                )
            return restored.meta["parent"], restored.arrays
        first = origin.weights(factory.base_template, self.tokenizer)
        if first is None:
            if self.model.lora.rank:
                logger.warning(
                    "model.lora.rank={}: adapters beside random weights, which stay as they are; "
                    "init_from=... names weights worth adapting.", self.model.lora.rank,
                )  # fmt: skip
            return None, factory.fresh()
        lineage, weights = first
        return lineage, factory.from_weights(weights)

    def _report(
        self, parent: dict[str, Any] | None, restored: Restored | None, n_params: int
    ) -> RunReport:
        experiment = self.experiment
        lineage = {"parent": parent, "data": self.trainer.fingerprint}
        record = self.folder / "run.json"
        begun = read_json(record) if record.exists() else None
        if not is_first():
            return SilentReport(self.folder, jax.process_index())
        word = shlex.quote(f"checkpoint={self.folder}")
        report = RunReport(
            self.folder,
            tracker=experiment.tracker,
            config={
                **experiment.to_json(),
                "variant": variant(experiment, self.overrides),
                "parameters": n_params,
            },
            lineage=lineage,
            title=experiment.name,
            total_steps=experiment.trainer.steps,
            start_step=restored.step if restored else 0,
            start_tokens=restored.meta["tokens"] if restored else 0,
            resumed=restored is not None,
            tracker_id=begun["tracker_id"] if begun else None,
            next_commands=[
                f"python launch/chat.py {word}"
                if self.chat
                else f'python launch/generate.py {word} prompt="..."'
            ],
        )
        try:
            self._record(report, begun, parent, restored, n_params)
        except BaseException as error:  # else W&B would show it as running for ever
            report.finish("failed", error=error)
            raise
        return report

    def _record(
        self,
        report: RunReport,
        begun: dict[str, Any] | None,
        parent: dict[str, Any] | None,
        restored: Restored | None,
        n_params: int,
    ) -> None:
        """Write run.json, or that the run goes on; say what is trained, and where."""
        experiment = self.experiment
        devices, memory = self.machine.device_names(), self.machine.memory_gib()
        if begun:
            note_resume(self.folder, step=restored.step if restored else 0, devices=devices)
        else:
            write_run(
                self.folder,
                title=experiment.name,
                specs=experiment.to_json(),
                overrides=self.overrides,
                devices=devices,
                data=self.trainer.fingerprint,
                tokenizer={
                    "fingerprint": self.tokenizer.fingerprint,
                    "vocab_size": self.tokenizer.vocab_size,
                    "run": None if parent else tokenizer_run(experiment.data.tokenizer.path),
                },
                parent=parent,
                last=self.last,
                tracker_id=report.tracker_id,
                objective=str(experiment.goal),
                parameters=n_params,
                memory_gib=memory,
            )
            save_tokenizer(self.tokenizer, self.folder)
        where = ", ".join(devices) + (f" ({memory:.0f} GiB)" if memory else "")
        trained, _ = split(
            self.model, experiment.trainer.freeze, self.parts.factory.template.params
        )
        n_trained = _count(trained)
        some = f", of which {n_trained:,} are trained," if n_trained < n_params else ""
        report.say(f"{self.model.name}: {n_params:,} parameters{some} on {where}")

    def _loop(
        self,
        checkpoints: Checkpoints,
        report: RunReport,
        restored: Restored | None,
        parent: dict[str, Any] | None,
    ) -> tuple[Loop, Source]:
        experiment, spec = self.experiment, self.experiment.trainer
        jitted = self.parts.train_step(self.machine.compiler_options)
        bench = Workbench(
            model=self.model,
            machine=self.machine,
            stepper=self.parts.stepper,
            rows=self.parts.rows,
            stop_ids=self.stop_ids,
            place=lambda batch: put_rows(batch, self.machine.mesh),
            report=report,
            stop=self.stop,
            ledger=self.ledger,
            resumed=restored is not None,
        )
        work = self.trainer.begin(bench)
        progress = Progress()
        if restored is not None:
            work.source.restore(restored.meta["cursor"])
            progress = Progress(**restored.meta["progress"])
            logger.info("Continuing {} from step {}.", self.folder, restored.step)
        steps = StepReport(
            report,
            tokens=restored.meta["tokens"] if restored else 0,
            flops_per_token=self.model.flops_per_token(
                experiment.data.seq_len, n_frozen_matmul(self.model, spec.freeze)
            ),
            peak_flops=self.machine.peak_flops(),
            memory_gib=self.machine.memory_used_gib,
            compilations=self.compilations,
            ahead=self.machine.device.platform != "cpu",
        )
        meta = {
            "run": str(self.folder),
            "experiment": experiment.to_json(),
            "model": self.model.to_json(),
            "tokenizer": self.tokenizer.to_json(),
            "chat_template": self.chat_template,
            "chat_end": self.chat.end if self.chat else None,
            "stop_ids": list(self.stop_ids),
            "fingerprint": self.trainer.fingerprint,
            "parent": parent,
        }
        loop = Loop(
            train_step=Compiled(jitted, self.stop, self.ledger),
            peaks=self.parts.peaks,
            place=bench.place,
            evaluate=work.evaluate,
            sample=work.sample,
            score=self.trainer.score,
            checkpoints=checkpoints,
            meta=meta,
            report=report,
            steps=steps,
            stop=self.stop,
            ledger=self.ledger,
            trace=StepTrace(self.folder / "profile" if experiment.profile and is_first() else None),
            total=spec.steps,
            eval_every=experiment.eval.every,
            save_every=experiment.checkpoint.every,
            sample_every=experiment.samples.every,
            sample_first=parent is not None,
            progress=progress,
            saved=restored.step if restored else None,
        )
        return loop, work.source


def _tell_checkpoints(checkpoints: Checkpoints, report: RunReport) -> None:
    """Where the best and the newest checkpoint are; often they are one."""
    best, newest = checkpoints.best(), checkpoints.newest()
    for alias, kept in (("best", best), ("newest", newest if newest != best else None)):
        if kept is not None:
            report.checkpoint(kept.folder, alias, {"step": kept.step, "score": kept.score})


def _count(params: Any) -> int:
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))
