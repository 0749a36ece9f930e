"""The command line, as a fresh process or, for most tests, composed in this one."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from launch.config import spec_from_config
from llm.train.experiment import ExperimentSpec

ROOT = Path(__file__).parents[2]

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def no_curves() -> Iterator[None]:
    """Drawing takes as long as the rest of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: tests undo theirs and run on
        patch.setattr("llm.report.report.draw_curves", lambda *_: False)
        yield


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs launch/main.py (or another script) with some words, in an empty folder."""

    def run(
        *words: str, script: str = "main.py", cwd: Path = tmp_path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HYDRA_", "WANDB_"))}
        settings = {"WANDB_MODE": "disabled", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
        return subprocess.run(
            [sys.executable, str(ROOT / "launch" / script), *words],
            cwd=cwd,
            env={**inherited, **settings, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tree() -> Iterator[None]:
    """Hydra knows where conf/ is."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


@pytest.fixture(scope="session")
def composed(tree: None) -> Callable[..., DictConfig]:
    """Composes words as launch/main.py would."""
    return lambda *words, hydra=False: compose("main", [*words], return_hydra_config=hydra)


@pytest.fixture(scope="session")
def composed_generation(tree: None) -> Callable[..., DictConfig]:
    """Composes words as launch/generate.py would."""
    return lambda *words: compose("generate", [*words])


@pytest.fixture(scope="session")
def experiment(composed) -> Callable[..., ExperimentSpec]:
    """The checked experiment that words describe."""
    return lambda *words: spec_from_config(composed(*words), ExperimentSpec)


@pytest.fixture(scope="session")
def tiny_words(tiny: Path) -> list[str]:
    """Words that make any experiment small, its caches shared among tests, and W&B silent."""
    return [
        "data.source=text",
        f"data.path={tiny / 'corpus'}",
        f"data.cache_dir={tiny / 'cache'}",
        "data.tokenizer.vocab_size=300",
        "data.eval_fraction=0.1",
        "data.seq_len=32",
        "data.batch_size=4",
        "model.n_layers=1",
        "model.d_model=16",
        "trainer.steps=2",
        "trainer.schedule.warmup_steps=1",
        "samples.every=null",
        "hardware.peak_tflops=0.1",
        f"hardware.compilation_cache={tiny / 'xla'}",
        "tracker.mode=disabled",
    ]
