"""A refusal leaves no folder, also where Hydra had made one before it came to it."""

from pathlib import Path

import pytest

from launch import new_folders

LATE = {
    "plan.py": ["hardware=a6000", "data.tokenizer.path=hf:some/where"],
    "dashboard.py": ["project=p"],
    "journey.py": ['sft=["trainer.x=1"]'],
}


@pytest.mark.parametrize(("script", "words"), LATE.items(), ids=LATE)
def test_a_late_refusal_leaves_nothing(
    command, tmp_path: Path, script: str, words: list[str]
) -> None:
    account = {"NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path / "none")}
    done = command(*words, script=script, WANDB_API_KEY="", **account)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Refused: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_of_several_plans_those_that_were_made_stay(command, tmp_path: Path) -> None:
    words = ["hardware=a6000", "data.tokenizer.path=null,hf:some/where", "hydra.sweep.dir=plans"]
    done = command("-m", *words, script="plan.py")
    assert done.returncode == 2 and "Refused: model.vocab_size=null: " in done.stderr
    (good,) = (path for path in (tmp_path / "plans").iterdir() if path.is_dir())
    assert (good / "result.json").exists() and "null" in good.name


@pytest.fixture
def made(tmp_path: Path, monkeypatch) -> Path:
    """The folder of a program's run, as Hydra leaves it."""
    monkeypatch.setattr(new_folders, "_new", {})
    folder = tmp_path / "outputs" / "today" / "run"
    new_folders.will_be_made(folder)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("seed: 0")
    return folder


def test_folders_that_were_made_to_hold_it_go_too(made: Path, tmp_path: Path) -> None:
    new_folders.forget()
    assert list(tmp_path.iterdir()) == []


def test_what_holds_something_else_stays(made: Path, tmp_path: Path) -> None:
    (made.parent / "other").mkdir()
    new_folders.forget()
    assert [path.name for path in made.parent.iterdir()] == ["other"]


def test_a_run_that_left_something_stays(made: Path) -> None:
    (made / "result.json").write_text("{}")
    (made / "checkpoints").mkdir()
    new_folders.forget()
    assert {path.name for path in made.iterdir()} == {".hydra", "result.json", "checkpoints"}


def test_a_folder_that_was_there_stays(made: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    new_folders.will_be_made(mine)
    new_folders.forget()
    assert mine.is_dir() and not made.exists()
