"""launch/tokenizer.py as a stranger uses it, and what comes after it."""

import io
import json
import shutil
from pathlib import Path

import pytest
from hydra import compose
from rich.console import Console

from launch.config import spec_from_config
from launch.early_checks import check_what_is_there
from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer
from llm.hub.sources import open_tokenizer
from llm.report.lineage import lineage, show_lineage
from llm.report.tokenizer_report import show
from llm.train.origin import Origin
from llm.train.run import run
from llm.train.tokenizer_spec import TokenizerTrainingSpec
from llm.train.tokenizer_training import train_tokenizer

TEXT = "naïve 数据 <|endoftext|> def f(x):\n    return 12345  🙂"


@pytest.fixture(scope="module")
def spec_of(tree: None, tiny: Path):
    """The checked words of launch/tokenizer.py."""

    def make(*words: str) -> TokenizerTrainingSpec:
        small = ["data.source=text", f"data.path={tiny / 'corpus'}", "data.eval_fraction=0.2"]
        small += [f"data.cache_dir={tiny / 'cache'}", "vocab_size=300"]
        return spec_from_config(compose("tokenizer", [*small, *words]), TokenizerTrainingSpec)

    return make


@pytest.fixture(scope="module")
def trained(spec_of, trained_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """A finished run of it, and what it measured."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = [f"compare=[{trained_run},{trained_run / 'tokenizer.json'}]", "pattern=gpt2"]
    return folder, train_tokenizer(spec_of(*words), folder, overrides=words)


def test_the_folder_explains_itself(trained, trained_run: Path) -> None:
    folder, measured = trained
    record, result = (json.loads((folder / n).read_text()) for n in ("run.json", "result.json"))
    tokenizer = Tokenizer.load(str(folder))
    assert record["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert record["specs"]["pattern"] == "gpt2" and record["data"]["sources"][0]["characters"]
    assert result["status"] == "finished" and list(result["quality"]) == [m.name for m in measured]
    ours, theirs, same = measured
    assert (ours.name, theirs.name, same.name) == (
        "tokenizer (this run)", str(trained_run), str(trained_run / "tokenizer.json")
    )  # fmt: skip
    assert theirs.quality.tokens == same.quality.tokens != ours.quality.tokens
    assert (folder / "tokenizer.png").read_bytes().startswith(b"\x89PNG")
    report = (folder / "report.md").read_text()
    assert f"| {ours.quality.bytes_per_token:.3f} |" in report and "cuts text so" in report
    assert not list(folder.glob(".*"))


def test_the_table_names_what_is_lost(trained) -> None:
    out = io.StringIO()
    show(Console(file=out, width=80), trained[1])
    lines = out.getvalue().splitlines()
    assert lines[2].startswith("tokenizer (this run)") and "16/16" in lines[2]


def test_transformers_opens_the_folder(trained) -> None:
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.load(str(trained[0])), AutoTokenizer.from_pretrained(trained[0])
    assert theirs(TEXT, add_special_tokens=False).input_ids == ours.encode(TEXT, specials=True)
    assert theirs.decode(theirs(TEXT).input_ids) == TEXT
    assert theirs.eos_token_id == ours.separator_id


def test_last_is_named_by_what_it_is(
    spec_of, trained_run: Path, tmp_path: Path, monkeypatch
) -> None:
    newest = shutil.copytree(trained_run, tmp_path / "outputs" / "newest")
    monkeypatch.setattr("llm.hub.sources.OUTPUTS", newest.parent)
    measured = train_tokenizer(spec_of("compare=[last:pretrain]"), tmp_path)
    assert [one.name for one in measured] == ["tokenizer (this run)", "newest"]


def test_a_separator_of_ones_own_is_kept(spec_of, tmp_path: Path) -> None:
    words = ["special_tokens=['<|endoftext|>','<doc>']", "separator='<doc>'"]
    train_tokenizer(spec_of(*words), tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert Tokenizer.load(str(path)).separator == "<doc>"


def test_a_run_remembers_whose_tokenizer_it_took(
    trained, trained_run, experiment, tiny_words, tmp_path: Path, monkeypatch
) -> None:
    from llm.report.run_report import RunReport

    monkeypatch.setattr(RunReport, "_write_report", lambda self: None)
    folder, measured = trained
    words = [*tiny_words, "model.n_heads=2", "hardware=cpu"]
    run(experiment(*words, f"data.tokenizer.path={folder}"), tmp_path / "first")
    run(experiment(*words, f"init_from={tmp_path / 'first'}"), tmp_path / "second")
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    assert record["tokenizer"]["run"] == str(folder)
    stages = lineage(tmp_path / "second")
    assert [stage.kind for stage in stages] == ["tokenizer", "pretrain", "pretrain"]
    assert len({stage.tokenizer for stage in stages}) == 1
    assert [stage.parents for stage in stages] == [(), (folder,), (tmp_path / "first",)]
    out = io.StringIO()
    show_lineage(Console(file=out, width=80), stages)
    assert f"{measured[0].quality.bytes_per_token:.4f} bytes/token" in out.getvalue()
    assert len(out.getvalue().splitlines()) == 4
    # The same tokenizer may be named beside the weights; another one may not.
    both = [f"init_from={tmp_path / 'first'}", f"data.tokenizer.path={folder}"]
    given = Origin(experiment(*words, *both), tmp_path / "third").tokenizer()
    assert given is not None and given.fingerprint == stages[0].tokenizer
    with pytest.raises(RefusedError, match=f"is another tokenizer .* than that of {both[0]}"):
        Origin(
            experiment(*words, both[0], f"data.tokenizer.path={trained_run}"), tmp_path
        ).tokenizer()


def test_any_checkpoint_lends_its_tokenizer(trained_run: Path) -> None:
    (step,) = (path for path in (trained_run / "checkpoints").iterdir() if path.name == "30")
    expected = Tokenizer.load(str(trained_run)).fingerprint
    assert open_tokenizer(str(step), "compare").fingerprint == expected


def test_refused_before_anything_is_made(command, tmp_path: Path) -> None:
    done = command("compare=[nowhere]", script="tokenizer.py")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("Refused: compare=nowhere: no such folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.tokenizer.vocab_size=999", "data.tokenizer: says which tokenizer"),
        ("data.eval_fraction=0", "data.eval_fraction=0: expected more than 0"),
        ("pattern=gpt5", "pattern=gpt5: expected one of llama3, gpt2"),
        ("vocab_size=258", "vocab_size=258: 256 bytes and 3 special tokens need"),
    ],
)
def test_words_that_cannot_work(spec_of, word: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        spec_of(word)


def test_a_folder_is_not_written_over(trained, spec_of) -> None:
    with pytest.raises(RefusedError, match="holds a run already; choose another"):
        train_tokenizer(spec_of(), trained[0])
    assert json.loads((trained[0] / "result.json").read_text())["status"] == "finished"


def test_a_run_with_a_tokenizer_that_does_not_fit_is_refused(trained, experiment) -> None:
    size = Tokenizer.load(str(trained[0])).vocab_size
    words = [f"data.tokenizer.path={trained[0]}", f"model.vocab_size={size - 1}"]
    with pytest.raises(RefusedError, match=f"model.vocab_size={size - 1}: .* has {size} tokens"):
        check_what_is_there(experiment(*words))
    with pytest.raises(RefusedError, match=r"^data.tokenizer.path=nowhere: no tokenizer\.json"):
        check_what_is_there(experiment("data.tokenizer.path=nowhere"))
