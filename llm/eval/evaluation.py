"""One evaluation from its spec: each checkpoint in turn, then the table, the picture, the files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from loguru import logger
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llm.core.machine import claim
from llm.eval.answers import write_answers
from llm.eval.asking import asking, shots_for
from llm.eval.candidates import Candidate, candidate, text_plan
from llm.eval.choices import answer_choices
from llm.eval.core_suite import core_suite
from llm.eval.early_checks import check_words
from llm.eval.harness import run_harness
from llm.eval.questions import question_set
from llm.eval.result_files import note_in_run, with_interval, write_results
from llm.eval.specs import EvaluateSpec
from llm.eval.text_loss import TextLoss, documents, merged, read_corpora, text_loss
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
        RefusedError: something cannot work; what was scored before is in the files.
    """
    check_words(spec)
    per_token = None if spec.per_token is None else Path(spec.per_token).expanduser()
    started, ledger = now(), Ledger()
    machine = claim(spec.hardware)
    if machine.note:
        logger.warning(machine.note)
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
            for words in spec.checkpoints:
                with ledger("load"):
                    model = candidate(words, spec, machine)
                results.append(_Evaluation(spec, model, ledger, tokens).result())
                del model  # before the next one is loaded
                record = write("running")
                note_in_run(record, record["checkpoints"][-1], folder)
    except BaseException as error:
        if results:  # hours of work, perhaps; a refusal of the first one leaves no result
            write("failed", error)
        raise
    record = write("finished")
    _track(spec, folder, record)
    return record


class _Evaluation:
    """Of one checkpoint."""

    def __init__(
        self, spec: EvaluateSpec, model: Candidate, ledger: Ledger, tokens: TokenFile | None
    ) -> None:
        self.spec, self.model, self.ledger, self.tokens = spec, model, ledger, tokens

    def result(self) -> dict[str, Any]:
        spec, scorer = self.spec, self.model.scorer
        result = self.model.identity()
        logger.info(
            "{}: {} parameters, context of {}", self.model.words, si(self.model.n_params),
            scorer.context,
        )  # fmt: skip
        if spec.measures_text:
            with self.ledger("text"):
                result["text"] = self._text()
        if spec.suite is not None:
            with self.ledger("suite"):
                result["suites"] = {spec.suite: self._suite()}
        if spec.tasks:
            with self.ledger("tasks"):
                result["tasks"] = dict(map(self._task, spec.tasks))
        if spec.lm_eval:
            with self.ledger("lm_eval"):
                result["lm_eval"] = self._harness()
        if scorer.seconds:
            result["tokens_gone_through"] = scorer.tokens
            result["tokens_per_second"] = scorer.tokens / scorer.seconds
        return result

    def _text(self) -> dict[str, Any]:
        spec, model = self.spec, self.model
        plan = text_plan(model, spec)
        corpora = read_corpora(
            plan.sources,
            model.lm.tokenizer,
            split=spec.split,
            eval_fraction=plan.eval_fraction,
            cache_dir=Path(spec.data.cache_dir).expanduser(),
            chat=plan.chat,
        )
        stride = spec.stride or model.scorer.context
        losses: dict[str, TextLoss] = {}
        for corpus in corpora:
            total = int(corpus.spans.length.sum()) if spec.limit is None else None
            with _progress(f"{model.words} on {corpus.name}", total) as advance:
                losses[corpus.name] = text_loss(
                    model.scorer,
                    documents(corpus, ends=spec.data.ends, limit=spec.limit),
                    stride=stride,
                    sink=self._sink(),
                    progress=advance,
                )
            if not math.isfinite(losses[corpus.name].loss):
                logger.warning(
                    "{} on {}: the loss is {}. THE MODEL IS BROKEN, or its numbers do not fit into "
                    "the type that is computed in; the result holds null",
                    model.words, corpus.name, losses[corpus.name].loss,
                )  # fmt: skip
        everything = merged(list(losses.values())).to_json()
        logger.info(
            "{}: loss {:.4f}, perplexity {:.3f}, {:.4f} bits per byte over {:,} documents",
            model.words, everything["loss"], everything["perplexity"],
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
        model = self.model
        scores = core_suite(model.scorer, model.lm.tokenizer, self.spec.limit)
        logger.info("{}: suite core {}", model.words, _with_interval(scores, "score"))
        return scores

    def _task(self, word: str) -> tuple[str, dict[str, Any]]:
        spec, model = self.spec, self.model
        how = asking(model.lm, spec.chat)
        task = question_set(word, limit=spec.limit, shots=shots_for(how, spec.shots))
        if task.picks:
            result = answer_choices(model.scorer, how, task)
        else:
            result = write_answers(
                model.lm,
                how,
                task,
                spec.sampling(),
                context=model.scorer.context,
                samples=spec.samples,
                batch_size=spec.batch_size,
                seed=spec.seed,
            )
        logger.info("{}: {} {}", model.words, task.name, _with_interval(result, "accuracy"))
        asked = {"chat": how.template is not None, "shots": len(task.shots)}
        return task.name, {**result, **asked}

    def _harness(self) -> dict[str, Any]:
        spec, model = self.spec, self.model
        found = run_harness(
            model.lm,
            model.scorer,
            spec.lm_eval,
            chat=asking(model.lm, spec.chat).template is not None,
            shots=spec.shots,
            limit=spec.limit,
            batch_size=spec.batch_size,
            seed=spec.seed,
        )
        for name, measures in found.items():
            logger.info("{}: {} {}", model.words, name, measures)
        return found

    def _sink(self) -> Callable[..., None] | None:
        if self.tokens is None:
            return None
        add, words, tokenizer = self.tokens.add, self.model.words, self.model.lm.tokenizer
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
