"""Every option of every group composes, builds and takes two steps.

Shrunk in depth and width only: what makes an option what it is (vocabulary, heads, rope scaling,
separate head, buckets) stays.
"""

import itertools
import json
from fnmatch import fnmatchcase
from pathlib import Path

import jax
import numpy as np
import pytest
from launch_words import GROUPS
from loguru import logger

from launch.help import CONF
from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError
from llm.models.parameter import parameters
from llm.plan.estimate import estimate
from llm.plan.target import target_of
from llm.train.run import run

# d_model=16 divides into the heads of most; the others need fewer.
SHRINK = {
    "gpt": ["model.n_heads=2"],
    "gpt2": ["model.n_heads=2"],
    "llama": ["model.n_heads=3", "model.n_kv_heads=1", "model.d_model=24", "model.d_mlp=48"],
    "llama_tiny": ["model.n_heads=2", "model.n_kv_heads=1", "model.d_mlp=32"],
    "llama3_1b": ["model.n_heads=4", "model.n_kv_heads=1", "model.d_mlp=32"],
    "llama3_8b": ["model.n_heads=4", "model.n_kv_heads=1", "model.d_mlp=32"],
}


def took_two_steps(experiment, folder: Path) -> dict:
    """Run it; its result, whose losses are numbers."""
    outcome = run(experiment, folder)
    assert (outcome.status, outcome.step) == ("finished", 2)
    result = json.loads((folder / "result.json").read_text())
    known = experiment.trainer.metrics(experiment)
    assert [name for name in result["final"] if not any(fnmatchcase(name, k) for k in known)] == []
    assert 0 < result["final"]["train/loss"] < 20
    assert 0 < result["final"]["eval/loss"] < 20
    assert (folder / "checkpoints" / "2").is_dir()
    return result


@pytest.fixture
def warnings():
    """Lines of warning that a run gives."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(sink)


def words_of(**options: str) -> list[str]:
    return [f"{group}={option}" for group, option in options.items()]


@pytest.mark.parametrize(("model", "data"), [*itertools.product(GROUPS["model"], GROUPS["data"])])
def test_every_model_with_every_kind_of_data(experiment, tiny_words, tmp_path, model, data) -> None:
    words = [*words_of(model=model, data=data, hardware="cpu"), *tiny_words, *SHRINK[model]]
    took_two_steps(experiment(*words), tmp_path)


@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_model_is_fine_tuned_and_reinforced(experiment, tiny_words, tmp_path, model) -> None:
    data = "padded" if model == "llama_tiny" else "packed"
    words = [*words_of(model=model, data=data, hardware="cpu"), *tiny_words, *SHRINK[model]]
    took_two_steps(experiment("trainer=sft", *words, "init_from=scratch"), tmp_path / "sft")
    words += [f"init_from={tmp_path / 'sft'}", "data.source=task", "data.path=addition"]
    words += ["data.seq_len=128", "data.max_documents=40", "trainer.max_new_tokens=4"]
    words += ["trainer.group_size=2", "trainer.eval_prompts=2", "model.vocab_size=null"]
    grpo = experiment("trainer=grpo", *words)
    outcome = run(grpo, tmp_path / "grpo")
    assert (outcome.status, outcome.step) == ("finished", 2)
    final = json.loads((tmp_path / "grpo" / "result.json").read_text())["final"]
    assert {"reward/mean", "eval/accuracy", "policy/entropy"} <= final.keys()
    assert final.keys() == set(grpo.trainer.metrics(grpo))


@pytest.mark.parametrize("optimizer", GROUPS["trainer/optimizer"])
def test_every_optimizer(experiment, tiny_words, tmp_path, optimizer: str) -> None:
    words = ["hardware=cpu", *tiny_words, *SHRINK["gpt"], f"trainer/optimizer={optimizer}"]
    took_two_steps(experiment(*words), tmp_path)


@pytest.mark.parametrize("schedule", GROUPS["trainer/schedule"])
def test_every_schedule(experiment, tiny_words, tmp_path, schedule: str) -> None:
    words = ["hardware=cpu", *tiny_words, *SHRINK["gpt"], f"trainer/schedule={schedule}"]
    result = took_two_steps(experiment(*words, "trainer.optimizer.lr=0.001"), tmp_path)
    assert 0 <= result["final"]["train/lr"] <= 0.001 * (1 + 1e-6)


@pytest.mark.parametrize("hardware", [h for h in GROUPS["hardware"] if h != "cpu"])
def test_every_profile_runs_the_same_experiment_here(
    experiment, tiny_words, tiny, tmp_path, warnings, hardware: str
) -> None:
    """On a CPU, with one line of warning where the profile wants a GPU, and the same losses."""
    cpu, here = (
        experiment(f"hardware={name}", *tiny_words, *SHRINK["gpt"], "data.batch_size=8")
        for name in ("cpu", hardware)
    )
    assert here.replace(hardware=cpu.hardware, tracker=cpu.tracker) == cpu
    result = took_two_steps(here, tmp_path)
    reference = tiny / "on-the-cpu"
    if not reference.exists():
        took_two_steps(cpu, reference)
    expected = json.loads((reference / "result.json").read_text())
    np.testing.assert_allclose(
        [result["final"][name] for name in ("train/loss", "eval/loss")],
        [expected["final"][name] for name in ("train/loss", "eval/loss")],
        rtol=1e-6,
    )
    named = [line for line in warnings if line.startswith(f"hardware={hardware}: ")]
    assert len(named) == (0 if hardware == "auto" else 1)


@pytest.fixture(scope="module")
def profiles(experiment) -> list[HardwareSpec]:
    return [experiment(f"hardware={name}").hardware for name in GROUPS["hardware"]]


@pytest.mark.parametrize("model", GROUPS["model"])
def test_full_size_passes_all_checks(experiment, profiles, model: str) -> None:
    for data, trainer in itertools.product(GROUPS["data"], GROUPS["trainer"]):
        composed = experiment(*words_of(model=model, data=data, trainer=trainer))
        for hardware in profiles:
            composed.replace(hardware=hardware)  # all checks anew


@pytest.mark.parametrize("trainer", ["sft", "grpo"])
def test_a_mixture_takes_the_place_of_the_trainers_own_data(experiment, trainer: str) -> None:
    own = experiment(f"trainer={trainer}").data
    assert own.source == "task" and own.mixture == ()
    words = "data.mixture=[{source: task, path: digit_sum, weight: 2}, {source: task}]"
    mixed = experiment(f"trainer={trainer}", words).data
    assert [(one.path, one.weight) for one in mixed.sources] == [("digit_sum", 2), (None, 1)]
    with pytest.raises(RefusedError, match="source=task: not read, because mixture names the"):
        experiment(f"trainer={trainer}", words, "data.source=task")


def test_every_optimizer_goes_with_every_schedule(experiment) -> None:
    for optimizer, schedule in itertools.product(
        GROUPS["trainer/optimizer"], GROUPS["trainer/schedule"]
    ):
        experiment(f"trainer/optimizer={optimizer}", f"trainer/schedule={schedule}")


@pytest.mark.parametrize("debug", GROUPS["debug"])
def test_every_debugging_preset_passes_all_checks(experiment, debug: str) -> None:
    experiment(f"debug={debug}")


@pytest.mark.parametrize("recipe", GROUPS["experiment"])
def test_every_recipe_fits_an_h100_and_says_what_it_measured(experiment, recipe: str) -> None:
    spec = experiment(f"experiment={recipe}", "hardware=h100")
    if spec.init_from not in ("last:pretrain", "last:sft"):  # whose vocabulary a plan cannot know
        assert estimate(spec, target_of(spec.hardware)).fits
    header = " ".join(CONF.joinpath("experiment", f"{recipe}.yaml").read_text().split("\n")[1:7])
    assert f"experiment={recipe}" in header
    assert "# Measured on " in header or "# Not run here (" in header


def test_digit_sums_held_out_of_fine_tuning_are_held_out_of_reinforcement(experiment) -> None:
    sft, grpo = (experiment(f"experiment=digit_sum_{stage}").data for stage in ("sft", "grpo"))
    assert sft.path == grpo.path == "digit_sum"
    assert (sft.sources, sft.eval_fraction) == (grpo.sources, grpo.eval_fraction)


def test_overfitting_learns_its_few_rows_by_heart(experiment, tiny: Path, tmp_path: Path) -> None:
    words = [f"data.cache_dir={tiny / 'cache'}", f"hardware.compilation_cache={tiny / 'xla'}"]
    words += ["hardware=cpu", "tracker.mode=disabled", "samples.every=null"]
    jax.config.update("jax_disable_most_optimizations", False)  # 150 steps: worth compiling well
    try:
        run(experiment("debug=overfit", *words), tmp_path)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert json.loads((tmp_path / "result.json").read_text())["final"]["train/loss"] < 0.1


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("gpt2", 124_439_808),
        ("llama", 134_515_008),
        ("llama3_1b", 1_235_814_400),
        ("llama3_8b", 8_030_261_248),
    ],
)
def test_presets_have_as_many_parameters_as_the_published_models(experiment, model, count) -> None:
    spec = experiment(f"model={model}").model
    shapes = jax.eval_shape(lambda: parameters(spec.build(jax.random.key(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
