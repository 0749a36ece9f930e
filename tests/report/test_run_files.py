import json
import subprocess
import sys

import pytest

from llm.core.spec import RefusedError, spec_from_json
from llm.report.json_files import read_json, write_json
from llm.report.run_files import git_state, note_resume, write_run
from llm.report.specs import TrackerSpec


def git(folder, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)


def test_git_state_tells_clean_from_dirty_and_from_no_repository(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "a.py").write_text("2\n")
    assert git_state(tmp_path)["dirty"] is True


def test_git_missing_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_run_json_says_what_ran_and_what_resumed_it(tmp_path):
    write_run(
        tmp_path, title="t", specs={"tracker": TrackerSpec().to_json()}, overrides=["seed=1"],
        devices=["cpu"], data={"sha": "d"}, tokenizer={"sha": "t"}, tracker_id="abc", parameters=7,
    )  # fmt: skip
    note_resume(tmp_path, step=40, devices=["gpu"])
    note_resume(tmp_path, step=80)
    run = json.loads((tmp_path / "run.json").read_text())
    assert spec_from_json(run["specs"])["tracker"] == TrackerSpec()
    assert run["overrides"] == ["seed=1"]
    assert (run["data"], run["tokenizer"], run["parent"]) == ({"sha": "d"}, {"sha": "t"}, None)
    assert run["parameters"] == 7
    assert run["packages"]["jax"]
    assert run["devices"] == ["cpu"]
    assert [r["step"] for r in run["resumes"]] == [40, 80]
    assert run["resumes"][0]["devices"] == ["gpu"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_broken_json_reads_as_empty(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") == {}


@pytest.mark.parametrize(
    "bad", [{"mode": "on"}, {"project": "a/b"}, {"project": ""}, {"tags": ["x" * 65]}]
)
def test_tracker_spec_refuses(bad):
    with pytest.raises(RefusedError):
        TrackerSpec(**bad)


def test_specs_import_nothing_heavy():
    code = (
        "import sys, llm.report.specs;"
        "print([m for m in ('jax', 'wandb', 'matplotlib', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
