"""A tiny experiment on a tiny corpus, whose run takes seconds, and a folder with rewards."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loguru import logger
from own_rewards import OWN

from llm.core.hardware import HardwareSpec
from llm.data.specs import PackedSpec, PaddedSpec, TokenizerSpec
from llm.models.specs import GPTSpec
from llm.report.specs import TrackerSpec
from llm.train.experiment import CheckpointSpec, EvalSpec, ExperimentSpec, SamplesSpec
from llm.train.optimizer_specs import AdamWSpec
from llm.train.run import run
from llm.train.schedules import WarmupCosineSpec
from llm.train.supervised_specs import PretrainSpec


@pytest.fixture(autouse=True)
def no_curves() -> Iterator[None]:
    """Drawing takes as long as the rest of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: tests undo theirs and run on
        patch.setattr("llm.report.report.draw_curves", lambda *_: False)
        yield


@pytest.fixture(scope="session")
def finished(experiment: Callable[..., ExperimentSpec], tiny: Path) -> Path:
    """The folder of a finished run of `experiment()`, to read and to copy, curves and all."""
    run(experiment(), tiny / "finished")
    return tiny / "finished"


@pytest.fixture(scope="session")
def experiment(tiny: Path) -> Callable[..., ExperimentSpec]:
    """Builds the spec; keywords replace parts of it."""

    def build(padded: bool = False, **changes) -> ExperimentSpec:
        data_changes = {
            "source": "text",
            "path": str(tiny / "corpus"),
            "seq_len": 32,
            "batch_size": 4,
            "eval_fraction": 0.1,
            "cache_dir": str(tiny / "cache"),
            "tokenizer": TokenizerSpec(vocab_size=300),
        } | changes.pop("data", {})
        trainer_changes = {
            "steps": 12,
            "optimizer": AdamWSpec(lr=3e-3),
            "schedule": WarmupCosineSpec(warmup_steps=2),
        } | changes.pop("trainer", {})
        parts = {
            "name": "tiny",
            "model": GPTSpec(max_seq_len=64, n_layers=1, d_model=16, n_heads=2, dropout=0.1),
            "hardware": HardwareSpec(
                device="cpu", peak_tflops=0.1, compilation_cache=str(tiny / "xla")
            ),
            "eval": EvalSpec(every=4),
            "checkpoint": CheckpointSpec(every=4),
            "samples": SamplesSpec(every=None),
            "tracker": TrackerSpec(mode="disabled"),
        } | changes
        return ExperimentSpec(
            data=(PaddedSpec if padded else PackedSpec)(**data_changes),
            trainer=PretrainSpec(**trainer_changes),
            **parts,
        )

    return build


@pytest.fixture
def reward_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with rewards in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text(OWN)
    (tmp_path / "mine" / "beside.py").write_text("LENGTH = 10")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Warnings that are logged during the test."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(sink)
