"""checkpoint= and init_from=: a run folder, one checkpoint in it, last, last:TRAINER."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from llm.core.spec import RefusedError, spec_from_json
from llm.hub import sources
from llm.hub.checkpoints import Checkpoints, read_checkpoint_meta, read_checkpoint_weights
from llm.hub.sources import find_checkpoint, runs
from llm.models.parameter import parameters


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An outputs folder of runs at several depths; minutes of their start in their names."""
    monkeypatch.setattr(sources, "OUTPUTS", tmp_path)

    def make(folder: str, trainer: str, minute: int, *steps: int) -> None:
        path = tmp_path / folder
        path.mkdir(parents=True)
        created = f"2026-01-01T00:{minute:02}:00+00:00"
        record = {"created": created, "specs": {"trainer": {"name": trainer}}}
        (path / "run.json").write_text(json.dumps(record))
        for step in steps:
            (path / "checkpoints" / str(step) / "meta").mkdir(parents=True)
            (path / "checkpoints" / str(step) / "state").mkdir()

    make("2026-01-01/00-01-00-a", "pretrain", 1, 5, 10)
    make("2026-01-01/00-02-00-b", "sft", 2, 7)
    make("multirun/2026-01-01/00-03-00-x/0-seed=0,debug=fast", "pretrain", 3, 100, 20)
    make("named", "pretrain", 4)  # failed before its first checkpoint
    (tmp_path / "a-tokenizer").mkdir()
    (tmp_path / "a-tokenizer" / "run.json").write_text('{"created": "2026-02-01", "specs": {}}')
    (tmp_path / "broken" / "run").mkdir(parents=True)
    (tmp_path / "broken" / "run" / "run.json").write_text('{"created": ')
    return tmp_path


def test_runs_are_found_at_any_depth_oldest_first(outputs: Path) -> None:
    assert [run.name[:10] for run in runs()] == ["00-01-00-a", "00-02-00-b", "0-seed=0,d", "named"]
    assert [run.name for run in runs("sft")] == ["00-02-00-b"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("last", "multirun/2026-01-01/00-03-00-x/0-seed=0,debug=fast/checkpoints/100"),
        ("last:pretrain", "multirun/2026-01-01/00-03-00-x/0-seed=0,debug=fast/checkpoints/100"),
        ("last:sft", "2026-01-01/00-02-00-b/checkpoints/7"),
        ("{}/2026-01-01/00-01-00-a", "2026-01-01/00-01-00-a/checkpoints/10"),
        ("{}/2026-01-01/00-01-00-a/", "2026-01-01/00-01-00-a/checkpoints/10"),
        ("{}/2026-01-01/00-01-00-a/checkpoints", "2026-01-01/00-01-00-a/checkpoints/10"),
        ("{}/2026-01-01/00-01-00-a/checkpoints/5", "2026-01-01/00-01-00-a/checkpoints/5"),
    ],
)
def test_what_a_source_means(outputs: Path, source: str, expected: str) -> None:
    assert find_checkpoint(source.format(outputs)) == outputs / expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("last:grpo", "checkpoint=last:grpo: no run of trainer grpo with a checkpoint in "),
        ("nonsense", "checkpoint=nonsense: no such folder; expected a run folder, a checkpoint"),
        ("", "checkpoint=: no such folder"),
        ("{}/named", "named: no checkpoint there"),
        ("{}/2026-01-01/00-01-00-a/checkpoints/6", "no such folder"),
    ],
)
def test_what_is_not_there_is_refused(outputs: Path, source: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        find_checkpoint(source.format(outputs))


def test_no_runs_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "OUTPUTS", tmp_path / "nothing")
    assert runs() == []
    with pytest.raises(RefusedError, match="init_from=last: no run with a checkpoint in"):
        find_checkpoint("last", "init_from")


def template(spec):
    shapes = jax.eval_shape(lambda: parameters(spec.build(jax.random.key(0))))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def test_weights_of_a_run(trained_run: Path) -> None:
    folder = find_checkpoint(str(trained_run))
    meta = read_checkpoint_meta(folder)
    assert meta["step"] == int(folder.name) == 30
    spec = spec_from_json(meta["model"])
    weights = read_checkpoint_weights(folder, template(spec))
    assert weights["embedding"].shape == (spec.vocab, spec.d_model)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(weights))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"d_model": 32}, r"16 weights .*attention_norm\.bias: here \(16,\), expected \(32,\);"),
        ({"n_layers": 2}, r"blocks\.1\.\S+: here None, expected"),
        ({"positions": "sinusoidal"}, r"1 weights .* position_embedding: here .* expected None"),
    ],
)
def test_weights_of_another_shape_are_refused_by_name(trained_run: Path, changes, named) -> None:
    folder = find_checkpoint(str(trained_run))
    spec = spec_from_json(read_checkpoint_meta(folder)["model"]).replace(**changes)
    with pytest.raises(RefusedError, match=named):
        read_checkpoint_weights(folder, template(spec))


def test_averaged_weights_come_before_plain_ones(tmp_path: Path) -> None:
    shape = {"w": jnp.zeros((2, 3))}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, ema in [(1, None), (2, {"w": jnp.full((2, 3), 7.0)})]:
        checkpoints.save(step, {"params": shape, "ema": ema}, {"step": step}, score=None)
    checkpoints.close()
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), shape
    )
    for step, value in [(1, 0.0), (2, 7.0)]:
        folder = find_checkpoint(str(tmp_path / "checkpoints" / str(step)))
        assert read_checkpoint_weights(folder, wanted)["w"].tolist() == [[value] * 3] * 2
