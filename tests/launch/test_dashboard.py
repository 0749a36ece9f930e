"""Three trainers tell W&B about their runs; launch/dashboard.py has a panel for all they say."""

import json
import re
from pathlib import Path

import pytest
from wandb_stand_in import ENTITY, StandIn, stand_in

from launch.dashboard import make
from llm.core.spec import RefusedError
from llm.report.metrics_file import read_metrics
from llm.report.specs import DashboardSpec
from llm.train.run import run

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # in wandb_workspaces


@pytest.fixture(scope="module")
def server():
    """A W&B server to which this process is logged in."""
    import wandb

    with stand_in() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.delenv("WANDB_MODE")
        wandb.teardown()  # it reads the environment once
        yield server
        wandb.teardown()


@pytest.fixture(scope="module")
def life(server: StandIn, experiment, tiny_words, trained_run, tmp_path_factory) -> dict[str, Path]:
    """The folders of an SFT run from a pre-trained model and of a GRPO run from that."""
    folder = tmp_path_factory.mktemp("life")
    common = [*tiny_words, "model.n_heads=2", "model.max_seq_len=64", "data.seq_len=64"]
    common += ["data.source=task", "samples.every=2", "samples.max_new_tokens=2"]
    common += ["tracker.mode=online", "tracker.alerts=true"]
    words = {
        "sft": ["data.path=null", "data.max_documents=200", f"init_from={trained_run}"],
        "grpo": [
            "data.path=addition", "data.max_documents=60", f"init_from={folder / 'sft'}",
            "trainer.max_new_tokens=2", "trainer.group_size=2", "trainer.kl_weight=0.1",
            "trainer.eval_prompts=2", "trainer.eval_samples=2",
        ],
    }  # fmt: skip
    for trainer, own in words.items():
        run(experiment(f"trainer={trainer}", *common, *own), folder / trainer, overrides=own)
    return {"pretrain": trained_run, "sft": folder / "sft", "grpo": folder / "grpo"}


def logged(folders: dict[str, Path]) -> set[str]:
    """Names of all metrics."""
    events = [e for folder in folders.values() for e in read_metrics(folder / "metrics.jsonl")]
    return {name for event in events for name in event} - {"step", "tokens", "time"}


def test_there_is_a_panel_for_every_metric_of_the_three_trainers(life, tmp_path: Path) -> None:
    spec = DashboardSpec(project="p", dry_run=True, smoothing=0.9, group="sweep")
    path = make(spec, tmp_path)
    section = json.loads(Path(path).read_text())["spec"]["section"]
    sections = {s["name"]: s for s in section["panelBankConfig"]["sections"]}
    assert [name for name, found in sections.items() if found["panels"]] == [
        "train",
        "eval",
        "rl",
        "throughput",
        "system",
        "samples",
    ]
    plots = [p["config"] for n in list(sections)[:4] for p in sections[n]["panels"]]
    assert {plot["xAxis"] for plot in plots} == {"tokens"}
    assert {plot.get("smoothingWeight") for plot in plots} == {0.9, None}
    named = {name for plot in plots for name in plot.get("metrics", ())}
    patterns = [plot["metricRegex"] for plot in plots if plot.get("metricRegex")]
    names = logged(life)
    shown = {n for n in names if n in named or any(re.fullmatch(p, n) for p in patterns)}
    assert names == shown
    assert named <= names  # no panel stays empty whatever one does
    (runs,) = section["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["group", "variant.value"]
    assert '"sweep"' in json.dumps(runs["filters"])
    tables = json.dumps(sections["samples"]["panels"])
    assert '"samples"' in tables and '"completions"' in tables


def test_the_dashboard_is_saved(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    import wandb

    spec = DashboardSpec(project="p", name="mine")
    url = make(spec, tmp_path)
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == (ENTITY, "p", "mine")
    assert url.startswith(server.url) and f"{ENTITY}/p" in url
    monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 1)  # seconds; it asks again for 19
    server.broken = True
    try:
        with pytest.raises(RefusedError, match="W&B did not save it"):
            make(spec, tmp_path)
    finally:
        server.broken = False


def test_the_life_of_a_model_arrives_in_wandb(life, server: StandIn) -> None:
    tracker_ids = {
        name: json.loads((folder / "run.json").read_text())["tracker_id"]
        for name, folder in life.items()
    }
    artifacts = {artifact.id: artifact for artifact in server.artifacts}
    for trainer, parent, table in [("sft", "pretrain", "samples"), ("grpo", "sft", "completions")]:
        seen = server.runs[tracker_ids[trainer]]
        *_, last = read_metrics(life[trainer] / "metrics.jsonl")
        assert seen.history[-1]["_step"] == last["step"] == 2
        assert seen.history[-1]["tokens"] == last["tokens"]
        assert set(seen.steps_of(table)) and seen.exit_code == 0
        assert seen.config["trainer"]["steps"] == 2
        assert seen.config["variant"].startswith("data.max_documents=")
        used = [artifacts[number].name for number in seen.used]
        assert used == [f"checkpoint-{tracker_ids[parent]}"]
        own = [a for a in artifacts.values() if a.name == f"checkpoint-{seen.id}"]
        assert "best" in own[0].aliases and own[0].metadata["step"] in (0, 2)
    assert len(server.alerts) == 2
    assert not server.unknown
