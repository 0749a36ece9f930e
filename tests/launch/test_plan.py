"""launch/plan.py and what launch/main.py makes of a plan, from the command line."""

import json
from pathlib import Path

import pytest

SMALL = ["hardware=cpu", "hardware.peak_tflops=0.1", "hardware.bandwidth=10"]


def folders(where: Path) -> list[Path]:
    return sorted(path.parent for path in where.rglob("result.json"))


def test_a_plan_for_a_gpu_that_is_not_here(command, tmp_path: Path) -> None:
    words = ["model=llama3_8b", "trainer=sft", "hardware=a6000"]
    done = command(*words, script="plan.py")
    assert done.returncode == 0, done.stderr
    for text in ("8.03B parameters", "Does not fit: train step needs", "model.lora.rank=16"):
        assert text in done.stdout
    (folder,) = folders(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["device"] == "A6000" and not result["fits"] and result["margin_bytes"] < 0
    assert result["parameters"] == 8_030_261_248
    assert sum(result["stages"][0]["parts"].values()) == result["peak_bytes"]
    assert [way["fits"] for way in result["remedies"]] == [True, True]
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder) == str(tmp_path / done.stdout.split()[-1])


def test_exact_figures_of_the_compiler_here(command, tmp_path: Path) -> None:
    words = [*SMALL, "data.batch_size=2", "data.seq_len=64", "exact=true"]
    done = command(*words, script="plan.py")
    assert done.returncode == 0, done.stderr
    assert "the compiler's figure" in done.stdout
    (folder,) = folders(tmp_path)
    (stage,) = json.loads((folder / "result.json").read_text())["exact"]
    assert stage["name"] == "train step" and stage["bytes"] > stage["temporary_bytes"] > 0


def test_bad_words_leave_nothing_behind(command, tmp_path: Path) -> None:
    done = command("data.seq_len=5000", script="plan.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Refused: data.seq_len=5000: longer than model.max_seq_len")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("sweep", [False, True])
def test_a_run_that_cannot_fit_is_refused(command, tmp_path: Path, sweep: bool) -> None:
    words = [*SMALL, "hardware.memory_gib=0.5"]
    done = command(*(["-m", "seed=0,1"] if sweep else []), *words)
    assert done.returncode == 2 and "this run does not fit: its train step needs" in done.stderr
    assert not list(tmp_path.rglob("run.json"))
    if not sweep:
        assert not list(tmp_path.rglob(".hydra"))


def test_a_folder_that_was_there_stays(command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    words = [*SMALL, "hardware.memory_gib=0.5", f"hydra.run.dir={tmp_path}/mine"]
    assert command(*words).returncode == 2
    assert (tmp_path / "mine").is_dir()


def test_a_continued_run_may_be_told_to_try(command, tiny_words, tmp_path: Path) -> None:
    words = [*tiny_words, "model.n_heads=2", "hardware=cpu", f"hydra.run.dir={tmp_path}/run"]
    assert command(*words).returncode == 0
    more = [f"resume={tmp_path}/run", "trainer.steps=3", "hardware.memory_gib=0.5"]
    refused = command(*more)
    assert refused.returncode == 2 and "this run does not fit" in refused.stderr
    assert command(*more, "plan=warn").returncode == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["step"]) == ("finished", 3)


def test_unless_it_is_told_to_try(command, tiny_words, tmp_path: Path) -> None:
    words = [*tiny_words, "model.n_heads=2", "hardware=cpu", "hardware.memory_gib=0.5", "plan=warn"]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "this run does not fit" in done.stderr and len(folders(tmp_path)) == 1


def test_a_plan_for_weights_that_lie_here(command, trained_run: Path, tmp_path: Path) -> None:
    words = ["hardware=h100", "model.max_seq_len=64", "model.n_layers=1", "model.n_heads=2"]
    words += ["data.seq_len=32", f"init_from={trained_run}", "samples.max_new_tokens=8"]
    done = command(*words, "model.d_model=16", script="plan.py")
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    trained = json.loads((trained_run / "result.json").read_text())
    assert result["parameters"] == trained["parameters"]
    refused = command(*words, "model.d_model=32", script="plan.py")
    assert refused.returncode == 2 and "say model.d_model=16" in refused.stderr
