"""What a run begins with: init_from."""

import json
import shutil
from pathlib import Path

import pytest
from run_folders import events, result

from llm.core.spec import RefusedError
from llm.data.specs import TokenizerSpec
from llm.hub.checkpoints import checkpoint_folder, read_checkpoint_meta
from llm.hub.sources import find_checkpoint
from llm.models.specs import LlamaSpec
from llm.train.experiment import SamplesSpec
from llm.train.origin import check_same
from llm.train.run import run


def test_init_from_takes_weights_and_starts_anew(
    experiment, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "parent")
    loss = result(tmp_path / "parent")["final"]["eval/loss"]
    spec = experiment(init_from=str(tmp_path / "parent"))
    run(spec, tmp_path / "child")
    first = events(tmp_path / "child")[0]
    assert (first["step"], first["tokens"]) == (0, 0)
    assert first["eval/loss"] == pytest.approx(loss, rel=1e-5)
    parent = json.loads((tmp_path / "child" / "run.json").read_text())["parent"]
    assert parent["step"] == 12 and parent["run"] == str(finished)  # the folder's own name
    # It goes on even when what it began with is gone.
    shutil.rmtree(tmp_path / "parent")
    longer = spec.replace(resume="true", trainer=spec.trainer.replace(steps=14))
    assert run(longer, tmp_path / "child").step == 14


def test_a_damaged_newest_checkpoint_does_not_end_a_run_with_first_weights(
    experiment, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "parent")
    spec = experiment(init_from=str(tmp_path / "parent"))
    run(spec, tmp_path / "child")
    shutil.rmtree(tmp_path / "parent")
    newest = checkpoint_folder(tmp_path / "child")
    (metadata,) = (newest / "meta").glob("metadata")
    metadata.write_text("{")
    longer = spec.replace(resume="true", trainer=spec.trainer.replace(steps=14))
    assert run(longer, tmp_path / "child").step == 14
    assert list((tmp_path / "child" / "unreadable").iterdir())


def test_init_from_brings_its_tokenizer(experiment, finished: Path, tmp_path: Path) -> None:
    other = {"tokenizer": TokenizerSpec(vocab_size=280)}
    child = experiment(data=other, init_from=str(finished))
    run(child, tmp_path / "child")
    saved = [folder / "tokenizer.json" for folder in (finished, tmp_path / "child")]
    assert saved[0].read_text() == saved[1].read_text()
    run(experiment(data=other), tmp_path / "other")
    named = {"tokenizer": TokenizerSpec(path=str(tmp_path / "other"))}
    with pytest.raises(RefusedError, match=r"another tokenizer .* than that of init_from"):
        run(experiment(data=named, init_from=str(finished)), tmp_path / "refused")


def test_weights_that_know_something_are_sampled_first(experiment, tmp_path: Path) -> None:
    samples = SamplesSpec(every=4, prompts=["x"], max_new_tokens=2)
    steps = {"steps": 8}
    run(experiment(samples=samples, trainer=steps), tmp_path / "parent")
    child = experiment(samples=samples, trainer=steps, init_from=str(tmp_path / "parent"))
    run(child, tmp_path / "child")
    for name, expected in (("parent", [4, 8]), ("child", [0, 4, 8])):
        files = (tmp_path / name / "samples").glob("step-*.txt")
        assert sorted(int(path.stem[5:]) for path in files) == expected


def test_init_from_the_first_of_several_that_is_there(
    experiment, finished: Path, tmp_path: Path
) -> None:
    sources = [str(tmp_path / "nowhere"), str(finished)]
    run(experiment(init_from=sources), tmp_path / "child")
    parent = json.loads((tmp_path / "child" / "run.json").read_text())["parent"]
    assert parent["run"] == str(finished)
    with pytest.raises(RefusedError, match="none of 1 sources can be had"):
        run(experiment(init_from=sources[:1]), tmp_path / "other")


def test_init_from_another_shape_is_refused(experiment, finished: Path, tmp_path: Path) -> None:
    wider = experiment().model.replace(d_model=32)
    data = {"cache_dir": str(tmp_path / "cache")}
    for plan in "refuse", "off":
        given = experiment(model=wider, init_from=str(finished), data=dict(data), plan=plan)
        with pytest.raises(RefusedError, match=r"of another shape; say model.d_model=16$"):
            run(given, tmp_path / plan)
    assert not (tmp_path / "cache").exists()  # nothing was tokenized for it


def test_the_width_of_a_head_may_be_said_or_follow() -> None:
    model = LlamaSpec(d_model=32, n_heads=4, n_kv_heads=2, vocab_size=64)
    check_same(model, model.replace(head_dim=8), "here")
    check_same(model.replace(head_dim=8), model, "here")
    with pytest.raises(RefusedError, match=r"say model.head_dim=4$"):
        check_same(model, model.replace(head_dim=4), "here")


def test_last_is_what_it_was_when_the_run_began(
    experiment, finished: Path, tmp_path: Path, monkeypatch
) -> None:
    """Also for a run that is killed before its first checkpoint, when others have run since."""
    monkeypatch.chdir(tmp_path)
    parent, child, later = (tmp_path / "outputs" / name for name in ("parent", "child", "later"))
    shutil.copytree(finished, parent)
    first = experiment(init_from="last")
    run(first, child)
    record = json.loads((child / "run.json").read_text())
    meant = "outputs/parent/checkpoints/12"
    assert (record["specs"]["init_from"], record["last"]) == (meant, {"last": meant})
    shutil.rmtree(child / "checkpoints")
    shutil.copytree(finished, later)
    newer = json.loads((later / "run.json").read_text()) | {"created": "9999"}
    (later / "run.json").write_text(json.dumps(newer))
    run(first.replace(resume="true"), child)
    assert find_checkpoint("last").parts[1] == "later"
    assert read_checkpoint_meta(checkpoint_folder(child))["parent"]["checkpoint"] == meant
