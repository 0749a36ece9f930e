"""What an evaluation leaves: result.json, a report, a picture, a note in the run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from llm.data.digests import digest
from llm.eval.picture import draw
from llm.report.json_files import write_atomic, write_json
from llm.report.numbers import number, si
from llm.report.run_files import git_state, package_versions

PICTURE = "evaluation.png"


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one checkpoint by the names that metrics have everywhere."""
    metrics = {
        **dict(_of_texts(result.get("text"))),
        **dict(_of_suites(result.get("suites", {}))),
        **dict(_of_tasks(result.get("tasks", {}))),
        **dict(_of_lm_eval(result.get("lm_eval", {}))),
    }
    metrics = {f"eval/{name}": value for name, value in metrics.items()}
    if "tokens_per_second" in result:
        metrics["perf/tokens_per_second"] = result["tokens_per_second"]
    return metrics


_Named = Iterator[tuple[str, float]]


def _of_texts(text: Mapping[str, Any] | None) -> _Named:
    if text is None:
        return
    names = ("loss", "perplexity", "bits_per_byte")
    yield from ((name, text[name]) for name in names)
    if len(text["sources"]) > 1:
        for source, own in text["sources"].items():
            yield from ((f"{source}/{name}", own[name]) for name in names)


def _of_suites(suites: Mapping[str, Any]) -> _Named:
    for suite, scores in suites.items():
        yield suite, scores["score"]
        yield from ((f"{suite}/{name}", task["accuracy"]) for name, task in scores["tasks"].items())


def _of_tasks(tasks: Mapping[str, Any]) -> _Named:
    for name, task in tasks.items():
        for measure in ("accuracy", "accuracy_per_byte"):
            if measure in task:
                yield f"{name}/{measure}", task[measure]
        for k, value in task.get("pass_at", {}).items():
            yield f"{name}/pass_at_{k}", value["value"]


def _of_lm_eval(tasks: Mapping[str, Any]) -> _Named:
    for name, measures in tasks.items():
        for measure, value in measures.items():
            if not measure.endswith("_stderr"):
                yield f"{name}/{measure}", value


def write_results(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write result.json, report.md and the picture.

    Returns:
        The content of result.json: `record`, the metrics of each checkpoint, and with which code.
    """
    results = [{**one, "metrics": metrics_of(one)} for one in record["checkpoints"]]
    whole = {**record, "checkpoints": results}
    if len(results) == 1 and record["status"] == "finished":
        whole["final"] = results[0]["metrics"]
    whole |= {"git": git_state(), "packages": package_versions()}
    write_json(folder / "result.json", whole)
    drawn = draw(whole, folder / PICTURE)
    write_atomic(folder / "report.md", report(whole, drawn).encode("utf-8", "replace"))
    return whole


def note_in_run(record: Mapping[str, Any], result: Mapping[str, Any], folder: Path) -> None:
    """Leave the figures with the run that made the checkpoint: its model card shows the newest.

    Checkpoints that come from elsewhere have no such place.
    """
    checkpoint = result["lineage"].get("checkpoint")
    if checkpoint is None:
        return
    run = Path(checkpoint).absolute().parent.parent
    note = {
        "finished": record["finished"],
        "step": result["lineage"]["step"],
        "folder": str(folder.absolute()),
        "spec": record["spec"],
        **result,
    }
    # Evaluations in folders of one name, as points of a sweep have, and other steps of this run
    # leave notes of their own.
    name = f"{folder.name}-step-{note['step']}-{digest(note['folder'])[:8]}.json"
    try:
        (run / "evaluations").mkdir(exist_ok=True)
        write_json(run / "evaluations" / name, note)
    except OSError as error:
        logger.warning("{}: no note of this evaluation can be left there: {}", run, error)


def report(record: Mapping[str, Any], drawn: bool) -> str:
    """report.md."""
    results = record["checkpoints"]
    sections = [
        "# Evaluation",
        f"{record['finished']}, {', '.join(record['devices'])}, {record['compute_dtype']}",
        _status(record),
        f"![figures by checkpoint]({PICTURE})" if drawn else "",
        "## Checkpoints\n\n" + _checkpoints(results),
        _texts(results),
        _suites(results),
        _tasks(results),
        _lm_eval(results),
        "Brackets hold 95 % confidence intervals: Wilson's for shares of right answers, else the "
        "percentile bootstrap over documents or questions.",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _status(record: Mapping[str, Any]) -> str:
    """Why checkpoints may be missing."""
    if record["status"] == "finished":
        return ""
    error = f": {record['error']['message']}" if "error" in record else ""
    asked = record["spec"]["checkpoint"]
    total = 1 if isinstance(asked, str) else len(asked)
    return (
        f"**{record['status']}** after {len(record['checkpoints'])} of {total} checkpoints{error}"
    )


def _checkpoints(results: list[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"`{one['checkpoint']}`", one["model"], si(one["parameters"]),
            f"{one['vocabulary']:,}", str(one["context"]),
            si(one["tokens_per_second"]) if "tokens_per_second" in one else "-",
        )
        for one in results
    ]  # fmt: skip
    header = ("checkpoint", "model", "parameters", "vocabulary", "context", "tokens per s")
    return _table(header, rows)


def _texts(results: list[Mapping[str, Any]]) -> str:
    rows = []
    for one in results:
        text = one.get("text")
        if text is None:
            continue
        sources = text["sources"]
        parts = {"all": text, **sources} if len(sources) > 1 else sources
        rows += [
            (
                f"`{one['checkpoint']}`", name, text["split"], f"{text['stride']:,}",
                with_interval(part["loss"], part["loss_95"]),
                number(part["perplexity"]),
                with_interval(part["bits_per_byte"], part["bits_per_byte_95"]),
                f"{part['documents']:,}", f"{part['tokens']:,}", f"{part['bytes']:,}",
            )
            for name, part in parts.items()
        ]  # fmt: skip
    if not rows:
        return ""
    header = ("checkpoint", "text", "split", "stride", "loss", "perplexity", "bits per byte",
              "documents", "tokens", "bytes")  # fmt: skip
    scored = [one["text"] for one in results if one.get("text") is not None]
    same = len({(*text["sources"], text["bytes"]) for text in scored}) == 1
    note = "" if same else "\n\nNot all of the same text: not comparable from row to row."
    return "## Text\n\n" + _table(header, rows) + note


def _suites(results: list[Mapping[str, Any]]) -> str:
    sections = []
    for suite in dict.fromkeys(name for one in results for name in one.get("suites", {})):
        own = [(one["checkpoint"], one["suites"][suite]) for one in results]
        rows = [("**score**", "", *(with_interval(s["score"], s["score_95"]) for _, s in own))]
        for name, task in own[0][1]["tasks"].items():
            cells = (
                with_interval(s["tasks"][name]["accuracy"], s["tasks"][name]["accuracy_95"])
                for _, s in own
            )
            rows.append((name, number(task["chance"]), *cells))
        header = ("task", "chance", *(f"`{words}`" for words, _ in own))
        sections.append(
            f"## Suite {suite}\n\nThe score is the mean over tasks of (accuracy - chance) / "
            f"(1 - chance): 0 is guessing, 1 is all right.\n\n{_table(header, rows)}"
        )
    return "\n\n".join(sections)


def _tasks(results: list[Mapping[str, Any]]) -> str:
    rows = []
    for one in results:
        for name, task in one.get("tasks", {}).items():
            measures = [("accuracy", task["accuracy"], task["accuracy_95"])]
            if "accuracy_per_byte" in task:
                interval = task["accuracy_per_byte_95"]
                measures.append(("accuracy per byte", task["accuracy_per_byte"], interval))
            for k, value in task.get("pass_at", {}).items():
                measures.append((f"pass@{k}", value["value"], value["interval_95"]))
            rows += [
                (
                    f"`{one['checkpoint']}`", name, measure, with_interval(value, interval),
                    number(task["chance"]) if task.get("chance") else "",
                    f"{task['questions']:,}",
                )
                for measure, value, interval in measures
            ]  # fmt: skip
    header = ("checkpoint", "task", "measure", "value", "chance", "questions")
    return "## Tasks\n\n" + _table(header, rows) if rows else ""


def _lm_eval(results: list[Mapping[str, Any]]) -> str:
    rows = []
    for one in results:
        for name, measures in one.get("lm_eval", {}).items():
            rows += [
                (f"`{one['checkpoint']}`", name, measure, number(value),
                 number(measures.get(f"{measure}_stderr")))
                for measure, value in measures.items()
                if not measure.endswith("_stderr")
            ]  # fmt: skip
    header = ("checkpoint", "task", "measure", "value", "standard error")
    return "## lm-evaluation-harness\n\n" + _table(header, rows) if rows else ""


def with_interval(value: float, interval: Any) -> str:
    """`0.512 [0.478, 0.546]`."""
    if interval is None:
        return number(value)
    return f"{number(value)} [{number(interval[0])}, {number(interval[1])}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, tuple("---" for _ in header)]
    lines += [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
