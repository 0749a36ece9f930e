"""The harness gives our model the figures that its own backend gives the same model, exported."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from harness_tasks import write_tasks

from llm.core.spec import RefusedError
from llm.eval.harness import _measures, local_tasks, run_harness
from llm.eval.scorer import NotFiniteError, Scorer
from llm.generate.language_model import LanguageModel, save_hf

PROMPTS = ["def return self", "for in import x", "1 : x =", "self for"]


@pytest.mark.lm_eval
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_figures_are_those_of_its_hugging_face_backend(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # Half of the answers are what the model writes.
    written = lm.generate(PROMPTS, max_new_tokens=12, temperature=0.0, stop=["\n"])
    answers = [(q, text if n % 2 else "no") for n, (q, text) in enumerate(zip(PROMPTS, written))]  # noqa: B905
    files = write_tasks(tmp_path, answers)
    save_hf(lm, tmp_path / "model")
    ours = run_harness(
        lm, Scorer(lm.engine), files, chat=False, shots=None, limit=None, batch_size=4, seed=0
    )
    theirs = simple_evaluate(
        HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32", batch_size=2),
        tasks=list(ours),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
    )["results"]
    assert set(ours) == {"local_choice", "local_perplexity", "local_answers"}
    for task, measures in ours.items():
        expected = dict(_measures(theirs[task]))
        for measure, value in measures.items():
            if not measure.endswith("_stderr"):
                assert value == pytest.approx(expected[measure], rel=1e-5), (task, measure)
    assert ours["local_answers"]["exact_match"] == 0.5
    assert 0 < ours["local_choice"]["acc"] < 1


@pytest.mark.lm_eval
@pytest.mark.filterwarnings("ignore")  # the harness's own
@pytest.mark.parametrize("task", range(3))
def test_a_broken_model_has_no_figures(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: int
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), lm.params)
    broken = LanguageModel(lm.pretrained, nothing)
    files = write_tasks(tmp_path, [("def", "no")])
    words = {"chat": False, "shots": None, "limit": None, "batch_size": 4, "seed": 0}
    with pytest.raises(NotFiniteError, match=r"^lm_eval, .* not finite has no score"):
        run_harness(broken, Scorer(broken.engine), [files[task]], **words)


def test_names_of_local_tasks(tmp_path: Path) -> None:
    files = write_tasks(tmp_path, [("a", "b")])
    names = ["local_choice", "local_perplexity", "local_answers"]
    assert local_tasks([*files, "arc_easy"]) == ([tmp_path], [*names, "arc_easy"])
    assert local_tasks([str(tmp_path)]) == ([tmp_path], sorted(names))
    (tmp_path / "empty.yaml").write_text("dataset_path: json\n")
    for word, message in [("empty.yaml", "no `task: NAME` in it"), ("no.yaml", "cannot be read")]:
        with pytest.raises(RefusedError, match=message):
            local_tasks([str(tmp_path / word)])


def test_without_the_harness_the_message_says_how_to_get_it(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    words = {"chat": False, "shots": None, "limit": None, "batch_size": 4, "seed": 0}
    with pytest.raises(RefusedError, match=r'pip install -e "\.\[eval\]"'):
        run_harness(lm, Scorer(lm.engine), ["arc_easy"], **words)
