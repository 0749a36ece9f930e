"""What a newcomer meets first: --help, --cfg, and the tab key."""

import os
from dataclasses import fields

import pytest
from launch_words import GROUPS

from llm.core.spec import spec_class
from llm.train.experiment import ExperimentSpec


def test_help_lists_groups_and_explains_keys(command) -> None:
    done = command("--help", "model=llama_tiny", "seed=7")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for group, options in GROUPS.items():
        assert f"{group}={'|'.join(options)}" in lines
    keys = {line.split()[0]: line for line in lines if "=" in line}
    assert "seed=7" in keys
    assert keys["model.n_kv_heads=2"].endswith("key/value heads; must divide n_heads")
    assert "(none, block, dots)" in keys["hardware.remat=none"]
    assert not any("_target_" in line or "schema" in line for line in lines)


def test_cfg_shows_the_configuration_within_two_seconds(command) -> None:
    before = os.times()
    done = command("--cfg", "job", "trainer.optimizer.lr=0.5")
    after = os.times()
    assert done.returncode == 0
    assert "lr: 0.5" in done.stdout
    # Of computing: others may hold up this machine.
    spent = [after.children_user - before.children_user]
    assert sum([*spent, after.children_system - before.children_system]) < 2


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("model=", [f"model={option}" for option in GROUPS["model"]]),
        ("model=llama", ["model=llama", "model=llama3_1b", "model=llama3_8b", "model=llama_tiny"]),
        ("debug=", [f"debug={option}" for option in GROUPS["debug"]]),
        ("hardware=h", ["hardware=h100", "hardware=h100x8"]),
        ("trainer/", ["trainer/optimizer=", "trainer/schedule="]),
        ("trainer/optimizer=", [f"trainer/optimizer={o}" for o in GROUPS["trainer/optimizer"]]),
        ("trainer.optimizer.l", ["trainer.optimizer.lr="]),
        ("model=llama model.n_k", ["model.n_kv_heads="]),
    ],
)
def test_tab_completion(command, typed: str, expected: list[str]) -> None:
    line = f"python launch/main.py {typed}"
    done = command("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0
    assert done.stdout.split() == expected


def test_tab_completion_of_nothing_offers_groups_and_keys(command) -> None:
    done = command("-sc", "query=bash", COMP_LINE="python launch/main.py ", COMP_POINT="22")
    offered = set(done.stdout.split())
    assert {"model=", "trainer", "trainer.", "seed="} <= offered
    known = {field.name for field in fields(ExperimentSpec)} | {g.partition("/")[0] for g in GROUPS}
    assert {word.rstrip("=./") for word in offered} == known | {"_target_"}


def test_every_target_in_the_tree_is_a_spec(composed) -> None:
    config = composed()
    for key in ("model", "data", "trainer", "hardware", "eval", "samples"):
        assert spec_class(config[key]._target_)
