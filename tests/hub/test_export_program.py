"""launch/export.py: a run of ours becomes a folder, and a model on the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import stand_in

import llm
from llm.core.spec import RefusedError, spec_from_json
from llm.hub.checkpoints import read_checkpoint_meta
from llm.hub.specs import ExportSpec
from llm.train.run import run

ROOT = Path(__file__).parents[2]


def program(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "export.py"), *words],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def test_a_run_is_exported_and_uploaded(trained_run: Path, tmp_path: Path) -> None:
    with stand_in() as hub:
        done = program(
            f"checkpoint={trained_run}", "out=model", "push=me/model", "hardware=cpu",
            cwd=tmp_path, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path / "h"),
        )  # fmt: skip
        uploaded = hub.repos.get("me/model", {})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "model"
    out = tmp_path / "model"
    assert uploaded == {path.name: path.read_bytes() for path in out.iterdir()}
    card = (out / "README.md").read_text()
    assert 'from_pretrained("me/model")' in card
    assert "| eval/loss | final |" in card
    assert '"source": "text"' in card
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["lineage"]["step"] == 30
    assert certificate["logits"]["positions"] == 64
    before, after = llm.load(str(trained_run)), llm.load(str(out))
    ids = [[1, 2, 3, 4]]
    assert (before.logits(ids) == after.logits(ids)).all()
    again = program(f"checkpoint={trained_run}", "out=model", cwd=tmp_path)
    assert again.returncode == 2
    assert "Refused: out=model: not empty; name a folder that does not exist yet" in again.stderr


def test_descendants_keep_the_licence_and_name_the_first_of_them(
    trained_run: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    llm.save_hf(llm.load(trained_run), base)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: ours\n---\n")
    newest = max((trained_run / "checkpoints").glob("*/state")).parent
    experiment = spec_from_json(read_checkpoint_meta(newest)["experiment"])
    source = str(base)
    for name in ("child", "grandchild"):
        child = experiment.replace(
            name=name, init_from=source, trainer=experiment.trainer.replace(steps=3)
        )
        run(child, tmp_path / name)
        source = str(tmp_path / name)
    llm.save_hf(llm.load(source), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'license: "other"\nlicense_name: "ours"' in card
    assert "\n# grandchild\n" in card
    assert f"- base: `{base}`" in card
    assert "base_model" not in card  # which are models on the hub


def test_what_cannot_be_meant_is_refused() -> None:
    for change, message in [
        ({"push": "model"}, "push=model: expected org/name"),
        ({"out": " "}, "out=' ': expected a folder"),
        ({"adapter": True, "max_shard_gib": 1.0}, "max_shard_gib=1.0: adapters are one file"),
        ({"dtype": "int8"}, "dtype=int8: expected one of float32, bfloat16"),
    ]:
        with pytest.raises(RefusedError, match=message):
            ExportSpec(**{"out": "x", **change})
