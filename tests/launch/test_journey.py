"""launch/journey.py: words that work, stages in order, and going on where it stopped."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose

from launch import journey
from launch.config import spec_from_config
from launch.journey import check_words, stages, travel
from llm.core.spec import RefusedError
from llm.eval.specs import EvaluateSpec
from llm.hub.specs import ExportSpec
from llm.report.json_files import write_json
from llm.train.experiment import ExperimentSpec
from llm.train.journey_spec import JourneySpec
from llm.train.tokenizer_spec import TokenizerTrainingSpec

ROOTS = {
    "tokenizer.py": ("tokenizer", TokenizerTrainingSpec),
    "main.py": ("main", ExperimentSpec),
    "evaluate.py": ("evaluate", EvaluateSpec),
    "export.py": ("export", ExportSpec),
}


@pytest.fixture
def spec(tree: None) -> JourneySpec:
    return spec_from_config(compose("journey"), JourneySpec)


def test_the_words_of_every_stage_are_accepted(spec: JourneySpec, tmp_path: Path) -> None:
    folder = tmp_path / "a folder, with = signs"
    found = {}
    for stage in stages(spec, folder):
        root, kind = ROOTS[stage.program]
        cfg = compose(root, [*stage.words], return_hydra_config=True)
        if stage.program != "export.py":
            assert cfg.hydra.run.dir == str(stage.folder)
        found[stage.folder.name] = spec_from_config(cfg, kind)
    assert list(found) == ["1-tokenizer", "2-pretrain", "3-sft", "4-grpo", "5-evaluate", "6-export"]
    assert found["2-pretrain"].data.tokenizer.path == str(folder / "1-tokenizer")
    assert found["3-sft"].init_from == str(folder / "2-pretrain")
    assert found["4-grpo"].init_from == str(folder / "3-sft")
    assert found["6-export"].checkpoint == str(folder / "4-grpo")
    assert found["5-evaluate"].checkpoints == tuple(
        str(folder / name) for name in ("2-pretrain", "3-sft", "4-grpo")
    )
    assert all(found[name].resumes for name in ("2-pretrain", "3-sft", "4-grpo"))


def test_it_goes_on_where_it_stopped(
    spec: JourneySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    called: list[str] = []
    outcome = {"3-sft": (0, "stopped")}

    def run(command: list[str], check: bool) -> SimpleNamespace:
        del check
        (folder,) = (
            stage.folder for stage in stages(spec, tmp_path) if stage.words == (*command[2:],)
        )
        called.append(folder.name)
        status, said = outcome.get(folder.name, (0, "finished"))
        write_json(folder / "result.json", {"status": said})
        trainer = {"trainer": {"name": folder.name[2:]}} if folder.name[0] in "234" else {}
        before = {"2-pretrain": None, "3-sft": "2-pretrain", "4-grpo": "3-sft"}.get(folder.name)
        write_json(folder / "run.json", {
            "specs": trainer,
            "parent": before and {"run": str(tmp_path / before)},
            "tokenizer": {"fingerprint": "abc", "run": str(tmp_path / "1-tokenizer")}
            if folder.name == "2-pretrain" else {"fingerprint": "abc"},
        })  # fmt: skip
        if folder.name == "6-export":
            comparison = {"read_back": {"max_difference": 0.0}}
            lineage = {"run": str(tmp_path / "4-grpo")}
            certificate = {"tokenizer": "abc", "logits": comparison, "lineage": lineage}
            write_json(folder / "certificate.json", certificate)
        return SimpleNamespace(returncode=status)

    for stage in stages(spec, tmp_path):
        stage.folder.mkdir()
    monkeypatch.setattr(journey, "subprocess", SimpleNamespace(run=run))
    with pytest.raises(SystemExit) as stopped:
        travel(spec, tmp_path)
    assert (stopped.value.code, called) == (0, ["1-tokenizer", "2-pretrain", "3-sft"])
    outcome["3-sft"] = (1, "failed")
    with pytest.raises(SystemExit) as failed:
        travel(spec, tmp_path)
    assert (failed.value.code, called[3:]) == (1, ["3-sft"])
    del outcome["3-sft"]
    travel(spec, tmp_path)
    assert called[4:] == ["3-sft", "4-grpo", "5-evaluate", "6-export"]
    result = json.loads((tmp_path / "result.json").read_text())
    kinds = [stage["kind"] for stage in result["lineage"]]
    assert kinds == ["tokenizer", "pretrain", "sft", "grpo", "export"]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path)
    travel(spec, tmp_path)
    assert len(called) == 8
    assert subprocess.run is not run
    (tmp_path / "3-sft" / "result.json").unlink()
    other = spec.replace(sft=["trainer.steps=700"])
    check_words(stages(other, tmp_path), tmp_path)  # it is to be done again
    with pytest.raises(RefusedError, match=r"^2-pretrain: .*steps=9 .* with other words .*=300 "):
        check_words(stages(spec.replace(pretrain=["trainer.steps=9"]), tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"export": ["push_to=x"]}, "^6-export: push_to: no such key. ExportSpec has "),
        ({"grpo": ["trainer.steps=-3"]}, "^4-grpo: trainer.steps=-3: "),
        ({"sft": ["model=chess"]}, "^3-sft: model=chess: no such option"),
        ({"every_run": ["seed=[1"]}, r"^2-pretrain: seed=\[1: expected key=value"),
    ],
)
def test_words_of_all_stages_are_checked_first(
    spec: JourneySpec, tmp_path: Path, changes: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        check_words(stages(spec.replace(**changes), tmp_path), tmp_path)


@pytest.mark.parametrize("word", ["resume=last", "hydra.run.dir=x", "out=y", "nonsense"])
def test_words_that_would_lead_elsewhere_are_refused(word: str) -> None:
    with pytest.raises(RefusedError, match=f"sft: '{word}'"):
        JourneySpec(sft=[word])
