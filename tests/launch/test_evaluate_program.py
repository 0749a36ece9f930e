"""launch/evaluate.py: from words to result.json, a report, a picture, and the model card."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pyarrow.parquet as pq
import pytest
from hydra import compose
from safetensors.numpy import load_file, save_file

from launch.config import spec_from_config
from launch.evaluate import evaluate_and_show
from llm.core.spec import RefusedError
from llm.data.bpe import build_tokenizer
from llm.data.sources import open_source as open_documents
from llm.data.specs import SourceSpec, TokenizerSpec
from llm.eval.candidates import Candidate
from llm.eval.result_files import note_in_run
from llm.eval.scorer import NotFiniteError
from llm.eval.specs import EvaluateSpec
from llm.generate.language_model import load, save_hf
from llm.hub.model_card import model_card
from llm.hub.sources import open_source

Evaluate = Callable[..., dict]


@pytest.fixture
def evaluate(tree: None, tiny: Path, tmp_path: Path) -> Evaluate:
    """Evaluates in this process; gives result.json."""

    def run(*words: str, folder: str = "evaluation") -> dict:
        common = [
            f"data.cache_dir={tiny / 'cache'}", "tracker.mode=disabled", "hardware=cpu",
            f"hardware.compilation_cache={tiny / 'xla'}",
        ]  # fmt: skip
        spec = spec_from_config(compose("evaluate", [*common, *words]), EvaluateSpec)
        evaluate_and_show(spec, tmp_path / folder)
        return json.loads((tmp_path / folder / "result.json").read_text())

    return run


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    save_hf(load(str(trained_run)), folder)
    return folder


@pytest.fixture(autouse=True)
def forgotten(trained_run: Path) -> Iterator[None]:
    """The run is shared among tests: nothing stays with it."""
    yield
    for path in (trained_run / "evaluations").glob("*"):
        path.unlink()


def test_last_is_named_by_what_it_is(
    evaluate: Evaluate, trained_run: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    newest = shutil.copytree(trained_run, tmp_path / "outputs" / "run")
    monkeypatch.setattr("llm.hub.sources.OUTPUTS", newest.parent)
    found = evaluate("checkpoint=last", "data.source=task", "data.path=addition", "limit=2")
    assert found["checkpoints"][0]["checkpoint"] == str(newest / "checkpoints" / "30")
    assert "`last`" not in (tmp_path / "evaluation" / "report.md").read_text()


def test_a_run_on_its_own_data_and_its_export(
    evaluate: Evaluate, trained_run: Path, exported: Path, tiny: Path, tmp_path: Path, capsys
) -> None:
    assert "## Evaluation" not in (exported / "README.md").read_text()
    data = ["data.source=text", f"data.path={tiny / 'corpus'}", "data.eval_fraction=0.1"]
    tokens = tmp_path / "tokens.parquet"
    alone = evaluate(f"checkpoint={trained_run}", f"per_token={tokens}", folder="alone")
    both = evaluate(f"checkpoint=[{trained_run},{exported}]", *data, "context=32", "stride=32")
    own, again, theirs = alone["checkpoints"][0], *both["checkpoints"]
    assert own["context"] == 32  # as it was trained
    assert own["text"]["loss"] == pytest.approx(again["text"]["loss"], rel=1e-6)
    assert own["text"]["loss"] == pytest.approx(theirs["text"]["loss"], rel=1e-5)
    assert own["text"]["documents"] == 7 and own["text"]["split"] == "held_out"
    # The run's own figure: its packed rows cut some documents, which leaves those a little less.
    during = json.loads((trained_run / "result.json").read_text())["final"]
    assert own["metrics"]["eval/loss"] == pytest.approx(during["eval/loss"], rel=0.05)
    assert alone["final"] == own["metrics"]
    table = pq.read_table(tokens).to_pydict()
    assert -sum(table["log_prob"]) / len(table["log_prob"]) == pytest.approx(own["text"]["loss"])
    # Files for people.
    folder = tmp_path / "evaluation"
    report = (folder / "report.md").read_text()
    assert f"| `{exported}` | text:" in report and "![figures" in report
    assert (folder / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "eval/bits_per_byte" in capsys.readouterr().out
    # The newest evaluation is on the card of the next export.
    certificate = json.loads((exported / "certificate.json").read_text())
    card = model_card(open_source(str(trained_run)), certificate)
    assert "## Evaluation" in card and f"| eval/loss | {own['text']['loss']:.4g} |" in card


def test_every_checkpoint_of_a_run_has_its_figures_on_its_card(
    trained_run: Path, exported: Path, tmp_path: Path
) -> None:
    model = open_source(str(trained_run))
    certificate = json.loads((exported / "certificate.json").read_text())
    steps = {1: 0.25, 2: 0.5}
    for step, share in steps.items():
        result = {"lineage": {**model.lineage, "step": step}, "metrics": {"eval/core": share}}
        note_in_run({"finished": "2026-01-01", "spec": {}}, result, tmp_path / "a" / "0")
    for step, share in steps.items():
        card = model_card(replace(model, lineage={**model.lineage, "step": step}), certificate)
        assert f"| eval/core | {share} |" in card
    note_in_run({"finished": "2026-01-01", "spec": {}}, result, tmp_path / "b" / "0")
    assert len(list((trained_run / "evaluations").iterdir())) == 3
    # A later evaluation of something else takes nothing off the card.
    result["metrics"] = {"eval/loss": 3.5, "eval/core": 0.75}
    note_in_run({"finished": "2026-01-02", "spec": {}}, result, tmp_path / "c" / "0")
    result["metrics"] = {"eval/loss": 3.25}
    note_in_run({"finished": "2026-01-03", "spec": {}}, result, tmp_path / "d" / "0")
    card = model_card(replace(model, lineage={**model.lineage, "step": 2}), certificate)
    assert "| eval/loss | 3.25 |" in card and "| eval/core | 0.75 |" in card
    assert "3.5 |" not in card and "| 0.5 |" not in card


@pytest.fixture
def broken(exported: Path, tmp_path: Path) -> Path:
    """A copy in which no weight is a number."""
    copy = shutil.copytree(exported, tmp_path / "broken")
    weights = load_file(copy / "model.safetensors")
    nothing = {name: np.full_like(weight, np.nan) for name, weight in weights.items()}
    save_file(nothing, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("first", [False, True])
def test_a_checkpoint_that_fails_leaves_a_result_that_says_so(
    evaluate: Evaluate, trained_run: Path, broken: Path, tmp_path: Path, first: bool
) -> None:
    both = [str(trained_run), str(broken)]
    words = f"checkpoint=[{','.join(both[::-1] if first else both)}]"
    with pytest.raises(NotFiniteError, match=r"^task choices:parity"):
        evaluate(words, "tasks=['choices:parity']", "limit=2", "shots=0", "context=64")
    result = json.loads((tmp_path / "evaluation" / "result.json").read_text())
    assert result["status"] == "failed" and result["error"]["type"] == "NotFiniteError"
    assert "task choices:parity" in result["error"]["message"]
    report = (tmp_path / "evaluation" / "report.md").read_text()
    assert f"**failed** after {1 - first} of 2 checkpoints: task choices:parity" in report
    assert [one["checkpoint"] for one in result["checkpoints"]] == both[: 1 - first]
    notes = list((trained_run / "evaluations").glob("*"))
    if not first:
        (own,) = result["checkpoints"]
        assert own["metrics"]["eval/choices:parity/accuracy"] >= 0 and "final" not in result
        assert [json.loads(note.read_text())["metrics"] for note in notes] == [own["metrics"]]
    else:
        assert notes == []


def test_ctrl_c_leaves_what_was_scored(
    evaluate: Evaluate, trained_run: Path, exported: Path, tmp_path: Path, monkeypatch
) -> None:
    load_weights, written = Candidate.load, tmp_path / "evaluation" / "result.json"

    def interrupted(*args: Any) -> Any:
        if written.exists():
            raise KeyboardInterrupt
        return load_weights(*args)

    monkeypatch.setattr(Candidate, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(f"checkpoint=[{trained_run},{exported}]", "tasks=[parity]", "limit=1", "shots=0",
                 "context=64", "max_new_tokens=4")  # fmt: skip
    result = json.loads(written.read_text())
    assert result["status"] == "stopped" and "error" not in result
    assert [one["checkpoint"] for one in result["checkpoints"]] == [str(trained_run)]


def test_all_checkpoints_are_checked_before_the_first_is_scored(
    evaluate: Evaluate, trained_run: Path, exported: Path, tmp_path: Path, monkeypatch
) -> None:
    def nothing_is_loaded(*_: object) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr("llm.eval.candidates.Candidate.load", nothing_is_loaded)
    text = ["data.source=jsonl", f"data.path={tmp_path / 'one.jsonl'}"]
    (tmp_path / "one.jsonl").write_text('{"text": "x"}\n')
    for words, message in [
        ([], "what it was trained on is not known here"),
        (["tasks=[parity]", "context=64", "max_new_tokens=60"], "room for 4;"),
        (text, "the only document is a single character"),
    ]:
        with pytest.raises(RefusedError, match=message):
            evaluate(f"checkpoint=[{trained_run},{exported}]", *words)
    assert not (tmp_path / "evaluation").exists()


def test_tasks_a_suite_and_lines_of_tokens(
    evaluate: Evaluate, trained_run: Path, tiny: Path, tmp_path: Path, monkeypatch
) -> None:
    tracker = MagicMock()
    monkeypatch.setattr("llm.eval.evaluation.WandbTracker", tracker)
    questions = tmp_path / "words.jsonl"
    record = {"question": "def", "choices": ["return", "日本"], "answer": 0}
    questions.write_text(f"{json.dumps(record)}\n" * 3)
    tokens = tmp_path / "tokens.jsonl"
    result = evaluate(
        f"checkpoint={trained_run}", "context=64", "limit=2", "shots=0", "suite=core",
        f"tasks=[parity,'choices:parity',{questions}]", "samples=2", "max_new_tokens=4",
        "data.source=text", f"data.path={tiny / 'corpus'}", "split=all", f"per_token={tokens}",
    )  # fmt: skip
    (own,) = result["checkpoints"]
    assert set(own["tasks"]) == {"parity", "choices:parity", "words"}
    assert set(own["tasks"]["parity"]["pass_at"]) == {"1", "2"}
    assert own["tasks"]["words"]["questions"] == 2 and own["metrics"]["eval/words/accuracy"] == 1
    assert len(own["suites"]["core"]["tasks"]) == 12
    # W&B gets the same figures, in a run of its own kind.
    assert tracker.call_args[0][0].job_type == "eval"
    tracker().log.assert_called_once_with(0, {"tokens": 0, **own["metrics"]})
    lines = [json.loads(line) for line in tokens.read_text().splitlines()]
    assert len(lines) == own["text"]["tokens"] and {line["checkpoint"] for line in lines} == {
        str(trained_run)
    }
    assert [line["position"] for line in lines[:3]] == [1, 2, 3]
    text = "".join(line["token"] for line in lines if line["document"] == lines[0]["document"])
    assert text.removesuffix("<|endoftext|>") in [
        path.read_text() for path in (tiny / "corpus").iterdir()
    ]


def test_what_does_not_belong_together_is_refused(
    evaluate: Evaluate, trained_run: Path, exported: Path, tiny: Path, tmp_path: Path
) -> None:
    source = open_documents(SourceSpec(source="text", path=str(tiny / "corpus")), tiny / "cache")
    other = build_tokenizer(TokenizerSpec(vocab_size=270), [source], [1.0], tiny / "cache")
    (tmp_path / "tokenizer.json").write_text(other.to_hf_json())
    same = f"data.tokenizer.path={trained_run / 'tokenizer.json'}"
    checkpoint = f"checkpoint={trained_run}"
    text = ["data.source=text", f"data.path={tiny / 'corpus'}"]
    for words, message in [
        ([checkpoint, f"data.tokenizer.path={tmp_path}"], r"is another tokenizer than that of"),
        ([checkpoint, same, "context=65"], r"context=65: .* sees 64 tokens at most"),
        ([checkpoint, "stride=33"], r"stride=33: longer than the context of .*, 32"),
        ([checkpoint, "stride=9", "context=8"], r"stride=9: longer than context=8"),
        ([checkpoint, "per_token=tokens.csv"], r"expected a name that ends in .parquet or .jsonl"),
        ([checkpoint, "data.path=x"], r"data.path=x: is read with a source"),
        ([checkpoint, "suite=core", "stride=8"], r"^stride=8: is read with a text"),
        ([checkpoint, "tasks=[parity]", "split=all"], r"^split=all: is read with a text"),
        ([checkpoint, "samples=4"], r"^samples=4: is read with tasks"),
        ([checkpoint, "lm_eval=[arc_easy]", "top_k=4"], r"^top_k=4: is read with tasks"),
        ([checkpoint, "suite=core", "shots=2"], r"^shots=2: is read with tasks"),
        ([checkpoint, "tasks=[parity]", "context=30", "max_new_tokens=2"], r"has room for 28;"),
        ([checkpoint, "data.loss_on=assistant", *text], r"has no chat template"),
        ([checkpoint, "chat=always", "tasks=[parity]"], r"has no chat template"),
        ([checkpoint, "tasks=[parity,parity]"], r"each once"),
        ([checkpoint, "tasks=[paritty]"], r"^tasks=paritty: no such kind of task"),
        ([checkpoint, "lm_eval=[no.yaml]"], r"lm_eval=no.yaml: cannot be read"),
        ([f"checkpoint=[{trained_run},{trained_run}]"], r"expected one or more, each once"),
        ([f"checkpoint={exported}"], r"what it was trained on is not known here; name a text"),
    ]:
        with pytest.raises(RefusedError, match=message):
            evaluate(*words)
    assert not (tmp_path / "evaluation" / "result.json").exists()


def test_bad_words_leave_nothing_behind(command, tmp_path: Path) -> None:
    done = command("checkpoint=nowhere", script="evaluate.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Refused: checkpoint=nowhere: no such folder")
    assert not any(tmp_path.iterdir())
