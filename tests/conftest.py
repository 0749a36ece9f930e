"""Tests run on the CPU, as eight devices, so that sharding is tested wherever they run."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("LERNAEAN_TEST_PLATFORM", "cpu")
os.environ["WANDB_MODE"] = "offline"
# Workers share the processors: several threads of torch in each only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Runs of a worker and the programs that it starts share their compiled programs; not each add.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import gc
from pathlib import Path

import jax
import pytest

# Tests compile much and compute little: by the emitters that are quick, as one module. (Newer XLA
# has no others, and ends a process that names a flag it does not know.)
flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def nothing_old_to_collect() -> None:
    """Libraries and compiled programs are a million objects that no collection need look at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `corpus/`, beside which caches may lie."""
    folder = tmp_path_factory.mktemp("tiny")
    words = ["def", "return", "self", "for", "in", "import", "x", "=", "1", ":", "\n"]
    (folder / "corpus").mkdir()
    for i in range(60):
        text = " ".join(words[(i * j + j // 3) % len(words)] for j in range(20 + 7 * i % 90))
        (folder / "corpus" / f"{i}.txt").write_text(f"{i} {text}")
    return folder


@pytest.fixture(scope="session")
def trained_run(tiny: Path) -> Path:
    """The folder of a finished run of a tiny GPT."""
    from llm.core.hardware import HardwareSpec
    from llm.data.specs import PackedSpec, TokenizerSpec
    from llm.models.specs import GPTSpec
    from llm.report.specs import TrackerSpec
    from llm.train.experiment import ExperimentSpec, SamplesSpec
    from llm.train.optimizer_specs import AdamWSpec
    from llm.train.run import run
    from llm.train.schedules import WarmupCosineSpec
    from llm.train.supervised_specs import PretrainSpec

    experiment = ExperimentSpec(
        name="trained",
        model=GPTSpec(max_seq_len=64, n_layers=1, d_model=16, n_heads=2),
        data=PackedSpec(
            source="text",
            path=str(tiny / "corpus"),
            seq_len=32,
            batch_size=4,
            eval_fraction=0.1,
            cache_dir=str(tiny / "cache"),
            tokenizer=TokenizerSpec(vocab_size=300),
        ),
        trainer=PretrainSpec(
            steps=30, optimizer=AdamWSpec(lr=1e-2), schedule=WarmupCosineSpec(warmup_steps=2)
        ),
        hardware=HardwareSpec(device="cpu", peak_tflops=0.1, compilation_cache=str(tiny / "xla")),
        samples=SamplesSpec(every=None),
        tracker=TrackerSpec(mode="disabled"),
    )
    run(experiment, tiny / "trained")
    return tiny / "trained"
