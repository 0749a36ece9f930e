"""What must stay quick and leave the devices alone."""

import subprocess
import sys


def heavy_after(statement: str) -> set[str]:
    """Which of the large packages a statement has loaded, in a fresh Python."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    heavy = {"jax", "flax", "optax", "orbax", "numpy", "datasets", "tokenizers", "wandb", "hydra"}
    return heavy & set(done.stdout.split())


def test_import_llm_loads_nothing() -> None:
    assert heavy_after("import llm") == set()


def test_specs_load_nothing() -> None:
    names = ["core.hardware", "data.specs", "generate.specs", "models.specs", "report.specs"]
    names += ["train.supervised_specs", "train.grpo.spec", "train.experiment"]
    names += ["train.tokenizer_spec", "train.journey_spec"]
    statement = "import " + ", ".join(f"llm.{name}" for name in names)
    made = "llm.train.supervised_specs.PretrainSpec(), llm.models.specs.LlamaSpec()"
    assert heavy_after(f"{statement}\n{made}, llm.data.specs.PaddedSpec()") == set()


def test_composing_loads_hydra_and_nothing_else() -> None:
    assert heavy_after("import launch.main") == {"hydra"}


def test_import_llm_takes_less_than_a_second() -> None:
    code = "import time; t = time.process_time(); import llm; print(time.process_time() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1  # of computing: others may hold up this machine
