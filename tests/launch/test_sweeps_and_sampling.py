"""-m runs one job for each combination of words; launch/generate.py samples from a run."""

import json
from pathlib import Path


def test_a_sweep_with_a_crash_ends_in_a_report_and_goes_on(
    command, tiny_words, tmp_path: Path
) -> None:
    """Of two points one diverges; then the sweep is continued."""
    words = [*tiny_words[:-1], "model.n_heads=2", "trainer/optimizer=optax", "eval.every=1"]
    words += ["trainer.grad_clip=null", "trainer.optimizer.optimizer=sgd", "trainer.steps=3"]
    swept = ["trainer.optimizer.lr=0.1,1e30", "seed=1", "hydra.sweep.dir=sweep"]
    done = command("-m", *words, *swept, WANDB_MODE="offline")
    assert done.returncode == 1, done.stderr
    assert "1 finished, 1 failed" in done.stdout
    assert "DivergedError: train/loss is" in done.stdout
    folders = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    names = [f"trainer.optimizer.lr={lr}" for lr in ("0.1", "1e+30")]
    assert [folder.name for folder in folders] == [f"{i}-{name}" for i, name in enumerate(names)]
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert [result["status"] for result in results] == ["finished", "failed"]
    runs = [json.loads((folder / "run.json").read_text()) for folder in folders]
    assert [run["specs"]["seed"] for run in runs] == [1, 1]
    assert {run["specs"]["tracker"]["group"] for run in runs} == {"sweep"}
    assert [run["specs"]["tracker"]["name"] for run in runs] == names
    # One W&B run in each folder, with an id of its own.
    tracked = [
        [path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")]
        for folder in folders
    ]
    assert tracked == [[run["tracker_id"]] for run in runs]
    assert len({run["tracker_id"] for run in runs}) == 2
    assert "| lr=1e+30 | failed |" in (tmp_path / "sweep" / "report.md").read_text()

    before = {p: p.stat().st_mtime_ns for f in folders[:1] for p in f.glob("*.json*")}
    done = command("resume=sweep", WANDB_MODE="disabled")
    assert done.returncode == 1
    assert done.stderr.count("is finished already.") == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_misspelt_sweep_starts_nothing(command, tmp_path: Path) -> None:
    done = command("trainer.lrr=1,2", "-m", "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    assert done.stderr.startswith("Refused: trainer.lrr: no such key.")
    assert not list(tmp_path.glob("sweep/*/"))


def test_generation_writes_text_to_standard_output(command, trained_run: Path, tmp_path) -> None:
    words = [f"checkpoint={trained_run}", "prompt='def x'", "n=2", "max_new_tokens=8"]
    words += ["hardware.compilation_cache=null"]
    done = command(*words, script="generate.py")
    assert (done.returncode, done.stderr) == (0, "")
    texts = done.stdout.rstrip("\n").split("\n\ndef x")
    assert len(texts) == 2
    assert done.stdout.startswith("def x")
    assert command(*words, script="generate.py").stdout == done.stdout
    assert list(tmp_path.iterdir()) == []


def test_generation_from_and_to_files(command, trained_run: Path, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("def\n\nself\n")
    words = [
        f"checkpoint=[{tmp_path / 'nowhere'},{trained_run}]",
        "prompts_file=prompts.txt",
        "n=2",
    ]
    words += ["out=answers.jsonl", "max_new_tokens=8", "hardware.compilation_cache=null"]
    done = command(*words, script="generate.py")
    assert done.returncode == 0 and "is used" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["def", "", "self"]
    assert all(len(line["completions"]) == 2 for line in lines)
    again = command(*words, script="generate.py")
    assert again.returncode == 2 and "out=answers.jsonl: exists already" in again.stderr
