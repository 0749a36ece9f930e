"""Before the first job of a sweep: every point is composed and checked, and nothing is created."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from loguru import logger
from omegaconf import DictConfig

from launch import sweep
from launch.config import spec_from_config
from launch.folder_names import point_folder
from launch.job import as_in_its_sweep, run_job
from launch.points import points_of
from launch.resume import replay_words
from llm.core.spec import RefusedError
from llm.train.experiment import ExperimentSpec

OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"


@pytest.fixture
def multirun(tree, tmp_path: Path, monkeypatch) -> Callable[..., DictConfig]:
    """What Hydra composes of the words of a sweep before it knows its points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "signals", lambda workers: None)
    monkeypatch.setattr(sweep, "start_logging", lambda: None)
    monkeypatch.setattr(sweep, "_begun", [])

    def compose(*words: str) -> DictConfig:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return hydra.compose_config(
            config_name="main", overrides=[*words, "hydra.sweep.dir=sweep"],
            run_mode=RunMode.MULTIRUN, with_log_configuration=False,
        )  # fmt: skip

    return compose


def as_optuna(config: DictConfig, **changes: object) -> DictConfig:
    config.hydra.sweeper = {"_target_": OPTUNA, "direction": "minimize", **changes}
    return config


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trainer.optimizer.lr=1e-3,-1 seed=0,1",
         "point 2, trainer.optimizer.lr=-1 seed=0: trainer.optimizer.lr=-1.0: expected a number "
         "greater than 0 (1 more of 4 points cannot work either)"),
        ("model.n_heads=4,5", "point 1, model.n_heads=5: model.n_heads=5: must divide d_model"),
        ("seed=0,1 objective=eval/los", "objective=eval/los: trainer=pretrain logs eval/loss, "),
        ("seed=0,1 data.eval_fraction=0 objective=eval/loss", "objective=eval/loss: trainer="),
        ("seed=0,1 objective=best:train/lr", "objective=best:train/lr: of train/lr neither high"),
        ("data.source=text data.path=a,b", "point 0, data.path=a: data.path=a: "),
        ("init_from=null,nowhere", "point 1, init_from=nowhere: init_from=nowhere: no such folder"),
        ("hardware.memory_gib=8,0.01", "point 1, hardware.memory_gib=0.01: this run does not fit"),
        ("hardware.xla_flags=[],[--xla_x]", "point 1, hardware.xla_flags=[--xla_x]: hardware.xla_"),
    ],
)  # fmt: skip
def test_a_bad_point_refuses_the_sweep(
    multirun, words: str, line: str, tmp_path: Path, capsys
) -> None:
    with pytest.raises(SystemExit) as end:
        sweep.begin(multirun(*words.split(), "model=gpt", "hardware=cpu"))
    error = capsys.readouterr().err
    assert error.startswith(f"Refused: {line}")
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir() if path.name != "outputs"] == []


def test_a_good_sweep_is_written_down_and_names_folders_by_what_differs(
    multirun, tmp_path: Path
) -> None:
    config = multirun("trainer/optimizer=adamw,muon", "seed=3,4", "trainer.steps=9", "plan=off",
                      "trainer.schedule.warmup_steps=1")  # fmt: skip
    sweep.begin(config)
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert record["swept"] == ["trainer/optimizer", "seed"]
    assert record["points"][2] == {"trainer/optimizer": "muon", "seed": "3"}
    assert (record["objective"], record["ended"]) == ("eval/loss", None)
    point = points_of(config).words[2]
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, point)
    assert composed.hydra.job.override_dirname == "seed=3,trainer/optimizer=muon"
    words = replay_words(["resume=sweep", "trainer.steps=12"])
    assert words == [
        "-m", "trainer/optimizer=adamw,muon", "seed=3,4", "plan=off",
        "trainer.schedule.warmup_steps=1", "trainer.steps=12", "resume=true",
        "hydra.sweep.dir='sweep'",
    ]  # fmt: skip
    with pytest.raises(RefusedError, match="goes on in that sweep's folder; leave"):
        replay_words(["resume=sweep", "hydra.sweep.dir=other"])


def test_a_folder_holds_one_sweep(multirun, tmp_path: Path, capsys) -> None:
    """A new one there is refused; one that goes on keeps when it began, and what `last` meant."""
    (tmp_path / "sweep").mkdir()
    record = tmp_path / "sweep" / "sweep.json"
    record.write_text('{"started": "then", "last": {"last": "RUN"}}')
    with pytest.raises(SystemExit) as end:
        sweep.begin(multirun("seed=0,1", "plan=off"))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "Refused: sweep: holds a sweep already; resume=sweep goes on with it, or choose another "
        "hydra.sweep.dir\n"
    )
    sweep.begin(multirun("seed=0,1", "plan=off", "resume=true"))
    after = json.loads(record.read_text())
    assert (after["started"], after["last"]) == ("then", {"last": "RUN"})


def test_duplicates_are_pointed_out(multirun) -> None:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    sweep.begin(multirun("trainer.optimizer.lr=1e-3,3e-3,0.001", "plan=off"))
    logger.remove(sink)
    assert lines == [
        "points 0 (trainer.optimizer.lr=0.001) and 2 (trainer.optimizer.lr=0.001) are the same "
        "experiment, which is run twice."
    ]


@pytest.mark.parametrize(
    ("words", "objective", "warnings"),
    [
        ("data.tokenizer.vocab_size=300,400", "eval/bits_per_byte", 0),
        ("data.tokenizer.vocab_size=300,400 objective=eval/loss", "eval/loss", 1),
        ("data.tokenizer.vocab_size=300,400 data.eval_fraction=0", "train/loss", 1),
        ("seed=0,1", "eval/loss", 0),
    ],
)
def test_a_loss_per_token_is_not_compared_across_tokenizers(
    multirun, tree, tmp_path: Path, words: str, objective: str, warnings: int
) -> None:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    config = multirun(*words.split(), "plan=off")
    sweep.begin(config)
    logger.remove(sink)
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["objective"] == objective
    assert len([line for line in lines if "is per token" in line]) == warnings
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_sweep_config(config, points_of(config).words[0])
    experiment = spec_from_config(composed, ExperimentSpec)
    assert str(as_in_its_sweep(experiment, tmp_path / "sweep" / "0").goal) == objective


def test_last_means_what_it_meant_when_the_sweep_began(
    multirun, trained_run: Path, tmp_path: Path, monkeypatch
) -> None:
    """Later the newest run would be the sweep's own first point."""
    newest = str(trained_run / "checkpoints" / "30")
    monkeypatch.setattr("llm.hub.sources.find_checkpoint", lambda *_: Path(newest))
    config = multirun("seed=0,1", "trainer=sft", "init_from=last:pretrain", "plan=off")
    sweep.begin(config)
    monkeypatch.undo()
    composed = (
        GlobalHydra.instance()
        .config_loader()
        .load_sweep_config(config, ["trainer=sft", "init_from=last:pretrain"])
    )
    experiment = spec_from_config(composed, ExperimentSpec)
    folder = tmp_path / "sweep" / "0-seed=0"
    assert as_in_its_sweep(experiment, folder).init_from == newest
    assert as_in_its_sweep(experiment, tmp_path).init_from == "last:pretrain"


class TestPoints:
    def test_of_a_sweeper_that_proposes_as_it_goes_the_ends_are_looked_at(self, multirun) -> None:
        words = ("trainer.optimizer.lr=interval(1e-4,0.1)", "seed=choice(1,2,3)", "eval.every=5")
        points = points_of(as_optuna(multirun(*words), params={"model.n_layers": "range(1,3)"}))
        assert not points.complete
        assert points.swept == ["model.n_layers", "trainer.optimizer.lr", "seed"]
        assert points.words[0] == [
            "model.n_layers=1", "trainer.optimizer.lr=0.0001", "seed=1", "eval.every=5",
        ]  # fmt: skip
        changed = [[w for w in p if w not in points.words[0]] for p in points.words[1:]]
        assert changed == [
            ["model.n_layers=2"], ["trainer.optimizer.lr=0.1"], ["seed=2"], ["seed=3"],
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("changes", "words", "line"),
        [
            (
                {"direction": "maximize"},
                [],
                "hydra.sweeper.direction=maximize: eval/loss is to ",
            ),
            ({}, ["trainer=grpo", "init_from=x"], None),
            ({"storage": "sqlite:///x"}, [], "hydra.sweeper.storage=sqlite:///x: this sweeper wo"),
            ({"direction": ["minimize"]}, [], "hydra.sweeper.direction=['minimize']: a run has"),
            ({}, ["resume=true"], "resume=true: what this sweeper has learned is in memory only"),
        ],
    )
    def test_what_an_optimiser_must_agree_with(
        self, multirun, experiment, changes, words: list[str], line: str | None
    ) -> None:
        config = as_optuna(multirun("seed=choice(1,2)", *words), **changes)
        spec = experiment(*words)
        if line is None:
            line = "hydra.sweeper.direction=minimize: eval/accuracy is to be as high as can be; say"
        with pytest.raises(RefusedError) as error:
            sweep._check_sweeper(config, points_of(config), spec)
        assert str(error.value).startswith(line)

    def test_a_plugin_that_is_not_there(self, multirun, monkeypatch) -> None:
        config = multirun("seed=0,1")
        config.hydra.launcher = {"_target_": JOBLIB, "n_jobs": 2}
        config.hydra.runtime.choices["hydra/launcher"] = "joblib"
        monkeypatch.setattr(sweep, "_installed", lambda package: False)
        with pytest.raises(RefusedError, match="hydra/launcher=joblib: hydra-joblib-launcher is n"):
            sweep._check_plugins(config)

    def test_tasks_that_would_not_find_each_other(self, multirun) -> None:
        config = multirun("seed=0,1")
        local = {"_target_": f"{SUBMITIT}.LocalLauncher", "nodes": 1, "tasks_per_node": 2}
        with pytest.raises(RefusedError, match="2 tasks of submitit_local would each run the whol"):
            config.hydra.launcher = local
            sweep._check_tasks(config.hydra.launcher)
        config.hydra.launcher = {**local, "_target_": f"{SUBMITIT}.SlurmLauncher"}
        sweep._check_tasks(config.hydra.launcher)
        sweep._check_tasks(multirun("seed=0,1").hydra.launcher)


class TestFolders:
    def test_a_point_keeps_its_folder_when_others_come_before_it(self, tmp_path: Path) -> None:
        (tmp_path / "0-seed=1").mkdir()
        assert point_folder(str(tmp_path), 3, "seed=1", "true") == "0-seed=1"
        assert point_folder(str(tmp_path), 3, "seed=1", None) == "3-seed=1"
        assert point_folder(str(tmp_path), 3, "seed=2", "true") == "3-seed=2"

    def test_of_two_equal_points_each_keeps_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "0-seed=1").mkdir()
        (tmp_path / "1-seed=1").mkdir()
        assert point_folder(str(tmp_path), 1, "seed=1", "true") == "1-seed=1"

    def test_names_fit_a_file_system(self, tmp_path: Path) -> None:
        name = point_folder(str(tmp_path), 0, "data.path=a/b, c" * 40, None)
        assert "/" not in name and " " not in name and len(name) < 130
        assert point_folder(str(tmp_path), 0, "", None) == "0-defaults"
        name = point_folder(str(tmp_path), 1, r"trainer.freeze=[head,'it\'s *?'],x={a:1}", None)
        assert name == "1-trainer.freeze=head,its,x=a1"  # brackets: orbax could not read below them


def test_a_job_is_run_by_the_program_itself() -> None:
    """What main() does under -m is in launch.job: workers import it by that name."""
    assert run_job.__module__ == "launch.job"
