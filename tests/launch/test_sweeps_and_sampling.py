"""-m runs one job for each combination of words; launch/generate.py samples from what they made."""

import json
from pathlib import Path


def test_a_sweep_makes_one_folder_for_each_run(command, tiny_words, tmp_path: Path) -> None:
    done = command(
        "-m", "debug=fast", "seed=0,1", *tiny_words, "model.n_heads=2", "hydra.sweep.dir=sweep"
    )
    assert done.returncode == 0, done.stderr
    folders = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [folder.name[:12] for folder in folders] == ["0-data.batch", "1-data.batch"]
    for seed, folder in enumerate(folders):
        assert json.loads((folder / "result.json").read_text())["status"] == "finished"
        record = json.loads((folder / "run.json").read_text())
        assert record["specs"]["seed"] == seed
        assert record["specs"]["tracker"]["group"] == "sweep"
        assert f"seed={seed}" in record["overrides"]


def test_a_refused_job_does_not_keep_the_others_from_running(
    command, tiny_words, tmp_path: Path
) -> None:
    done = command("-m", "model.n_heads=3,2", *tiny_words, "hydra.sweep.dir=sweep")
    assert done.returncode == 2
    assert "Refused: model.n_heads=3: must divide d_model=16" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/result.json")]
    assert [result["status"] for result in results] == ["finished"]


def test_a_misspelt_sweep_starts_nothing(command, tmp_path: Path) -> None:
    done = command("-m", "trainer.lrr=1,2", "hydra.sweep.dir=sweep")
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
