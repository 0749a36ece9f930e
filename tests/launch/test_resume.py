"""resume=: a run goes on in its own folder, as itself."""

import json
from pathlib import Path

import pytest

from launch.resume import replay_words
from llm.core.spec import RefusedError
from llm.train.run_folder import check_run_folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What Hydra leaves of a run whose folder is named by a sweep's words."""
    folder = tmp_path / "0-seed=1,data=padded 'x'"
    (folder / ".hydra").mkdir(parents=True)
    words = ["seed=1", "data=padded", "trainer.steps=30", "samples.prompts=['a, b','c=d']"]
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(words))
    return folder


class TestWords:
    def test_the_runs_own_words_come_first_and_its_folder_is_kept(
        self, run_folder: Path, composed
    ) -> None:
        words = replay_words([f"resume={run_folder}", "trainer.steps=50", "tracker.mode=offline"])
        assert words[:3] == ["seed=1", "data=padded", "samples.prompts=['a, b','c=d']"]
        config = composed(*words, hydra=True)
        assert config.hydra.run.dir == str(run_folder)
        assert (config.seed, config.trainer.steps, config.tracker.mode) == (1, 50, "offline")
        assert (config.resume.lower(), config.data._target_) == (
            "true",
            "llm.data.specs.PaddedSpec",
        )
        assert list(config.samples.prompts) == ["a, b", "c=d"]

    def test_a_continuation_can_be_continued(self, run_folder: Path) -> None:
        again = replay_words([f"resume={run_folder}", "trainer.steps=50"])
        kept = [word for word in again if not word.startswith("hydra.")]
        (run_folder / ".hydra" / "overrides.yaml").write_text(json.dumps(kept))
        words = replay_words([f"resume={run_folder}"])
        assert sorted(words) == sorted(again)

    @pytest.mark.parametrize(
        "words", ["seed=1", "resume=true", "resume=false", "resume=null", "-m"]
    )
    def test_other_words_stay_as_they_are(self, words: str) -> None:
        assert replay_words(words.split()) == words.split()

    @pytest.mark.parametrize("word", ["-m", "--multirun", "hydra.run.dir=elsewhere"])
    def test_words_that_contradict_it(self, run_folder: Path, word: str) -> None:
        with pytest.raises(RefusedError, match=f"goes on in that run's folder; leave {word} away"):
            replay_words([f"resume={run_folder}", word])


class TestSameExperiment:
    START = (
        "trainer.steps=30", "trainer.optimizer.lr=0.001", "model.n_layers=2", "data.batch_size=16",
    )  # fmt: skip

    @pytest.fixture
    def begun(self, experiment, tmp_path: Path) -> Path:
        """A folder with the record of a run."""
        record = {"specs": experiment(*self.START).to_json()}
        (tmp_path / "run.json").write_text(json.dumps(record))
        return tmp_path

    @pytest.mark.parametrize(
        "word",
        [
            "resume=true",
            "trainer.steps=31",
            "hardware=h100",
            "hardware.micro_batch=4",
            "checkpoint.every=3",
            "tracker.project=other",
            "data.workers=2",
            "data.cache_dir=elsewhere",
        ],
    )
    def test_what_may_change(self, experiment, begun: Path, word: str) -> None:
        check_run_folder(experiment(*self.START, "resume=true", word), begun)

    @pytest.mark.parametrize(
        ("word", "line"),
        [
            ("trainer.steps=29", "trainer.steps=29: .* has 30 of them; they may grow but not sh"),
            ("seed=1", "seed=1: the run in .* was started with seed=0; a continued run keeps its"),
            ("model.n_layers=3", "model.n_layers=3: .* was started with model.n_layers=2; "),
            ("trainer.optimizer.lr=0.5", "trainer.optimizer.lr=0.5: .* trainer.optimizer.lr=0.001"),
            ("data.batch_size=8", "data.batch_size=8: .* data.batch_size=16; "),
            ("data=padded", "data._target_=llm.data.specs.PaddedSpec: "),
            (
                "trainer/optimizer=muon",
                "trainer.optimizer._target_=llm.train.optimizer_specs.MuonSpec: ",
            ),
            ("init_from=last", "init_from=last: .* init_from=None; "),
        ],
    )
    def test_what_may_not(self, experiment, begun: Path, word: str, line: str) -> None:
        with pytest.raises(RefusedError, match=f"^{line}"):
            check_run_folder(experiment(*self.START, "resume=true", word), begun)

    def test_steps_do_not_fall_behind_an_earlier_continuation(
        self, experiment, begun: Path
    ) -> None:
        (begun / "checkpoints" / "40").mkdir(parents=True)
        with pytest.raises(RefusedError, match=r"steps=35: the run in .* has 40 of them"):
            check_run_folder(experiment(*self.START, "resume=true", "trainer.steps=35"), begun)

    def test_a_run_older_than_a_key_can_go_on(self, experiment, begun: Path) -> None:
        record = json.loads((begun / "run.json").read_text())
        del record["specs"]["trainer"]["label_smoothing"]
        (begun / "run.json").write_text(json.dumps(record))
        check_run_folder(experiment(*self.START, "resume=true"), begun)
        with pytest.raises(RefusedError, match=r"label_smoothing=0.1: .*label_smoothing=0.0;"):
            words = (*self.START, "resume=true", "trainer.label_smoothing=0.1")
            check_run_folder(experiment(*words), begun)


def steps_of(folder: Path) -> list[int]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["step"] for event in events if "train/loss" in event]


def test_from_the_command_line(command, tiny_words, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "lr=1,x"
    words = [*tiny_words, "model.n_heads=2", "checkpoint.every=1", "hardware=cpu"]
    here = "hydra.run.dir='outputs/lr=1,x'"

    # The form for clusters: starts if there is nothing yet, goes on if there is.
    done = command(*words, "resume=true", here)
    assert done.returncode == 0, done.stderr
    assert steps_of(folder) == [1, 2]
    done = command(*words, "resume=true", here, "trainer.steps=4")
    assert done.returncode == 0, done.stderr
    assert steps_of(folder) == [1, 2, 3, 4]

    # Words that would make it another run are refused, and nothing in the folder changes.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for word in ("trainer.optimizer.lr=5", "trainer.steps=3"):
        done = command("resume=outputs/lr=1,x", word, "tracker.notes=x")
        assert done.returncode == 2
        assert done.stderr.startswith(f"Refused: {word}")
        assert done.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    done = command("resume=last", "trainer.steps=5")
    assert done.returncode == 0, done.stderr
    assert steps_of(folder) == [1, 2, 3, 4, 5]
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["lr=1,x"]
