"""One evaluation from its spec: each checkpoint in turn, then the table, the picture, the files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from loguru import logger
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llm.core.allocator import keep_freed_memory
from llm.core.hardware import HardwareSpec
from llm.core.machine import claim
from llm.eval.answers import write_answers
from llm.eval.candidates import Candidate, candidate, read_texts
from llm.eval.choices import answer_choices
from llm.eval.core_suite import core_suite
from llm.eval.early_checks import check_words
from llm.eval.harness import run_harness
from llm.eval.questions import QuestionSet
from llm.eval.result_files import note_in_run, with_interval, write_results
from llm.eval.specs import EvaluateSpec
from llm.eval.text_loss import Corpus, TextLoss, documents, merged, text_loss
from llm.eval.text_plan import TextPlan
from llm.eval.token_file import TokenFile, open_token_file
from llm.report.ledger import Ledger
from llm.report.numbers import si
from llm.report.run_files import now
from llm.report.terminal import console
from llm.report.wandb_tracker import WandbTracker, new_run_id


def evaluate(spec: EvaluateSpec, folder: Path) -> dict[str, Any]:
    """Do what the spec says.

    Args:
        spec: which checkpoints, texts and tasks.
        folder: for result.json, report.md and evaluation.png; created if missing.

    Returns:
        The content of result.json.

    Raises:
        RefusedError: something cannot work. Nothing was scored then, unless it is a task of
            lm-evaluation-harness, which is looked at when its turn comes.
        NotFiniteError: what a model computes are no numbers. Of this, as of any error while a
            checkpoint is scored, result.json tells, beside what was scored before.
    """
    check_words(spec)
    per_token = None if spec.per_token is None else Path(spec.per_token).expanduser()
    started, ledger = now(), Ledger()
    machine = claim(spec.hardware)
    if machine.note:
        logger.warning(machine.note)
    with ledger("prepare"):  # whatever is refused is refused before the work begins
        candidates = [candidate(words, spec, machine.spec) for words in spec.checkpoints]
        texts = read_texts(candidates, spec)
    if len({(plan.sources, plan.eval_fraction) for one in candidates if (plan := one.text)}) > 1:
        logger.warning(
            "Checkpoints are scored on text of their own, and figures of different texts cannot be "
            "compared: name one for all (data.source=...)."
        )
    if machine.device.platform == "cpu":
        keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []

    def write(status: str, error: BaseException | None = None) -> dict[str, Any]:
        record: dict[str, Any] = {
            "kind": "evaluation",
            "status": status,
            "started": started,
            "finished": now(),
            "spec": spec.to_json(),
            "devices": machine.device_names(),
            "compute_dtype": machine.spec.compute_dtype,
            "checkpoints": results,
            "ledger": ledger.totals(),
        }
        if error is not None:
            record["error"] = {"type": type(error).__name__, "message": str(error)}
        return write_results(folder, record)

    try:
        with nullcontext() if per_token is None else open_token_file(per_token) as tokens:
            for one, corpora in zip(candidates, texts, strict=True):
                scored = _Evaluation(spec, one, corpora, machine.spec, ledger, tokens).result()
                results.append(scored)
                record = write("running")
                note_in_run(record, record["checkpoints"][-1], folder)
    except KeyboardInterrupt:
        write("stopped")
        raise
    except BaseException as error:
        write("failed", error)
        raise
    record = write("finished")
    _track(spec, folder, record)
    return record


class _Evaluation:
    """Of one checkpoint, whose weights are in memory as long as this is."""

    def __init__(
        self,
        spec: EvaluateSpec,
        candidate: Candidate,
        corpora: Sequence[Corpus],
        hardware: HardwareSpec,
        ledger: Ledger,
        tokens: TokenFile | None,
    ) -> None:
        self.spec, self.candidate, self.corpora = spec, candidate, corpora
        self.words, self.ledger, self.tokens = candidate.words, ledger, tokens
        with ledger("load"):
            self.lm, self.scorer = candidate.load(spec, hardware)

    def result(self) -> dict[str, Any]:
        spec, scorer = self.spec, self.scorer
        n_params = sum(x.size for x in jax.tree.leaves(self.lm.params))
        result = {**self.candidate.identity(), "parameters": n_params}
        logger.info("{}: {} parameters, context of {}", self.words, si(n_params), scorer.context)
        if self.candidate.text is not None:
            with self.ledger("text"):
                result["text"] = self._text(self.candidate.text)
        if spec.suite is not None:
            with self.ledger("suite"):
                result["suites"] = {spec.suite: self._suite()}
        if spec.tasks:
            with self.ledger("tasks"):
                result["tasks"] = {task.name: self._task(task) for task in self.candidate.tasks}
        if spec.lm_eval:
            with self.ledger("lm_eval"):
                result["lm_eval"] = self._harness()
        if scorer.seconds:
            result["tokens_gone_through"] = scorer.tokens
            result["tokens_per_second"] = scorer.tokens / scorer.seconds
        return result

    def _text(self, plan: TextPlan) -> dict[str, Any]:
        spec = self.spec
        stride = spec.stride or self.scorer.context
        losses: dict[str, TextLoss] = {}
        for corpus in self.corpora:
            total = int(corpus.spans.length.sum()) if spec.limit is None else None
            with _progress(f"{self.words} on {corpus.name}", total) as advance:
                losses[corpus.name] = text_loss(
                    self.scorer,
                    documents(corpus, ends=spec.data.ends, limit=spec.limit),
                    stride=stride,
                    sink=self._sink(),
                    progress=advance,
                )
            if not math.isfinite(losses[corpus.name].loss):
                logger.warning(
                    "{} on {}: the loss is {}. THE MODEL IS BROKEN, or its numbers do not fit into "
                    "the type that is computed in; the result holds null",
                    self.words, corpus.name, losses[corpus.name].loss,
                )  # fmt: skip
        everything = merged(list(losses.values())).to_json()
        logger.info(
            "{}: loss {:.4f}, perplexity {:.3f}, {:.4f} bits per byte over {:,} documents",
            self.words, everything["loss"], everything["perplexity"],
            everything["bits_per_byte"], everything["documents"],
        )  # fmt: skip
        return {
            "split": spec.split,
            "eval_fraction": plan.eval_fraction,
            "stride": stride,
            **everything,
            "sources": {name: loss.to_json() for name, loss in losses.items()},
        }

    def _suite(self) -> dict[str, Any]:
        scores = core_suite(self.scorer, self.lm.tokenizer, self.spec.limit)
        logger.info("{}: suite core {}", self.words, _with_interval(scores, "score"))
        return scores

    def _task(self, task: QuestionSet) -> dict[str, Any]:
        spec, how = self.spec, self.candidate.how
        if task.picks:
            result = answer_choices(self.scorer, how, task)
        else:
            result = write_answers(
                self.lm,
                how,
                task,
                spec.sampling(),
                samples=spec.samples,
                batch_size=spec.batch_size,
                seed=spec.seed,
            )
        logger.info("{}: {} {}", self.words, task.name, _with_interval(result, "accuracy"))
        return {**result, "chat": how.template is not None, "shots": len(task.shots)}

    def _harness(self) -> dict[str, Any]:
        spec = self.spec
        found = run_harness(
            self.lm,
            self.scorer,
            spec.lm_eval,
            chat=self.candidate.how.template is not None,
            shots=spec.shots,
            limit=spec.limit,
            batch_size=spec.batch_size,
            seed=spec.seed,
        )
        for name, measures in found.items():
            logger.info("{}: {} {}", self.words, name, measures)
        return found

    def _sink(self) -> Callable[..., None] | None:
        if self.tokens is None:
            return None
        add, words, tokenizer = self.tokens.add, self.words, self.lm.tokenizer
        return lambda document, log_probs: add(words, tokenizer, document, log_probs)


def _with_interval(result: dict[str, Any], name: str) -> str:
    return with_interval(result[name], result[f"{name}_95"])


@contextlib.contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; gives a function that adds to it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _short(checkpoint: str) -> str:
    """The last part of a path; of a single checkpoint, its run's."""
    path = Path(checkpoint)
    return path.parents[1].name if path.parent.name == "checkpoints" else path.name


def _track(spec: EvaluateSpec, folder: Path, record: dict[str, Any]) -> None:
    """Tell W&B: one event per checkpoint, and all of them as a table."""
    title = f"evaluate-{'-'.join(_short(one['checkpoint']) for one in record['checkpoints'])}"[:120]
    tracker = WandbTracker(
        spec.tracker, folder, run_id=new_run_id(), title=title,
        config={**spec.to_json(), "checkpoints": record["checkpoints"]},
    )  # fmt: skip
    results = record["checkpoints"]
    for step, result in enumerate(results):
        tracker.log(step, {"tokens": step, **result["metrics"]})
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    rows = [[one["checkpoint"], *(one["metrics"].get(name) for name in names)] for one in results]
    tracker.table(len(results), "evaluation", ["checkpoint", *names], rows)
    tracker.finish(0)
    tracker.wait()
