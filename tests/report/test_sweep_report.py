"""A sweep's report, from folders in every state."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llm.report.follow import follow
from llm.report.importance import effects, in_order
from llm.report.objective import Objective
from llm.report.sweep_folder import is_sweep, read_sweep
from llm.report.sweep_plots import _dots, _figure, _heat_map, apart
from llm.report.sweep_report import show_sweep, write_sweep_report

LR, DEPTH = "trainer.optimizer.lr", "model.n_layers"
LOSS = {"0.1": 2.0, "0.01": 1.0, "0.001": 3.0}


def point(
    sweep: Path, number: int, words: dict[str, str], *, loss: float | None,
    status: str = "finished", tokens: int = 100, error: str | None = None,
) -> Path:  # fmt: skip
    """The folder of a run whose held-out loss falls in a line from 5 to `loss`."""
    name = ",".join(f"{k}={v}" for k, v in words.items()).replace("/", "_")
    folder = sweep / f"{number}-{name}"
    folder.mkdir(parents=True)
    overrides = ["model=gpt", "init_from=last", *(f"{k}={v}" for k, v in words.items())]
    specs = {"seed": int(words.get("seed", 0)), "trainer": {"steps": 10}}
    run = {"overrides": overrides, "objective": "eval/loss", "specs": specs,
           "parent": {"checkpoint": "outputs/x/3"}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    if loss is not None:
        lines = [
            {"step": i, "tokens": tokens * i // 10, "eval/loss": 5 + (loss - 5) * i / 10}
            for i in range(11)
        ]  # fmt: skip
        lines += [{"step": i, "tokens": tokens * i // 10, "train/loss": 4.0} for i in range(1, 11)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status != "killed":
        result = {"status": status, "step": 10, "error": error and {"type": "E", "message": error},
                  "final": {"eval/loss": loss}, "ledger": {"train": 30.0}}  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Twelve planned points: eight finished, one failed, one killed, one stopped, one waiting."""
    folder = tmp_path / "sweep"
    planned = [{LR: lr, "seed": s} for lr in ("0.1", "0.01", "0.001", "9") for s in ("0", "1", "2")]
    for number, words in enumerate(planned):
        if words[LR] != "9":
            loss = LOSS[words[LR]] + 0.1 * int(words["seed"])
            status = "stopped" if number == 8 else "finished"
            point(folder, number, words, loss=loss, status=status)
    point(folder, 9, planned[9], loss=None, status="failed", error="no\ngood | at all")
    point(folder, 10, planned[10], loss=4.0, status="killed")
    record = {"words": ["x"], "swept": [LR, "seed"], "objective": "eval/loss", "points": planned,
              "last": {"last:sft": "outputs/a/checkpoints/3"}, "ended": "2026-01-01"}  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def test_what_became_of_settings_without_a_value(sweep: Path) -> None:
    found = read_sweep(sweep)
    assert found.unmeasured == {((LR, "9"),): "failed, killed, waiting"}
    figure = _figure(4.8, "")
    _dots(figure, found, [LR])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.01", "0.1", "9"]
    assert "failed, killed, waiting" in [text.get_text() for text in axes.texts]


def test_cells_without_a_value(tmp_path: Path) -> None:
    planned = [{LR: lr, DEPTH: n} for lr in ("0.1", "9") for n in ("1", "2")]
    for number, words in enumerate(planned):
        if number < 2:
            point(tmp_path, number, words, loss=number + 1.0)
        else:
            point(tmp_path, number, words, loss=None, status="failed", error="diverged")
    record = {"words": ["x"], "swept": [LR, DEPTH], "objective": "eval/loss", "points": planned}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    figure = _figure(4.8, "")
    _heat_map(figure, read_sweep(tmp_path), [LR, DEPTH])
    said = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(said) == ["1.0000", "2.0000", "failed", "failed"]


def test_twelve_points(sweep: Path, capsys) -> None:
    found = read_sweep(sweep)
    assert [len(found.with_status(s)) for s in ("finished", "stopped", "failed", "killed",
                                                "waiting")] == [8, 1, 1, 1, 1]  # fmt: skip
    assert [dict(s.words)[LR] for s in found.ranked] == ["0.01", "0.1", "0.001"]
    assert found.ranked[0].mean == pytest.approx(1.1)
    assert found.ranked[0].spread == pytest.approx(0.1)
    text = write_sweep_report(sweep).read_text()
    for words in (
        "**12 points: 8 finished, 1 stopped, 1 failed, 1 killed, 1 waiting**",
        "Compared by `eval/loss` (lower is better), after 100 tokens each.",
        "`last:sft` was `outputs/a/checkpoints/3` when it began.",
        "| 1 | 0.01 | 1.1000 ± 0.1000 | 3 |",
        f"[1](<3-{LR}=0.01,seed=0/report.md>)",
        "| lr=9, seed=0 | failed | 10 | E: no good \\| at all |",
        "| lr=9, seed=1 | killed | 10 | ended without a word (killed, or out of memory) |",
        "| lr=9, seed=2 | waiting | 0 |",
        f"python launch/main.py model=gpt init_from=outputs/x/3 {LR}=0.01 seed=...",
        f"resume={sweep}",
        "From 8 points this is a hint, not a finding.",
    ):
        assert words in text
    assert (sweep / "curves.png").stat().st_size > 10_000
    assert "eval/loss against lr](settings.png)" in text
    show_sweep(found)
    shown = capsys.readouterr().out
    assert "8 finished, 1 stopped" in shown and "E: no good | at all" in shown


def test_points_that_did_more_are_compared_where_all_of_them_were(tmp_path: Path) -> None:
    """At its end the first is better; after as many tokens as the other had it was not."""
    point(tmp_path, 0, {"data.batch_size": "8"}, loss=1.0, tokens=400)
    point(tmp_path, 1, {"data.batch_size": "2"}, loss=2.0, tokens=100)
    found = read_sweep(tmp_path)
    assert (found.amount, found.even) == (100, False)
    assert [dict(s.words)["data.batch_size"] for s in found.ranked] == ["2", "8"]
    assert [s.mean for s in found.ranked] == pytest.approx([2.0, 4.0])
    text = write_sweep_report(tmp_path).read_text()
    assert "| 2 | 8 | 4.0000 | 1.0000 (400) |" in text


@pytest.mark.parametrize(
    ("swept", "picture"),
    [
        ((LR, DEPTH), "eval/loss by lr and n_layers"),
        ((LR, DEPTH, "model"), "eval/loss of each combination"),
    ],
)
def test_two_fields_make_a_map_and_more_make_parallel_axes(
    tmp_path: Path, swept: tuple[str, ...], picture: str
) -> None:
    values = {LR: ("1e-1", "1e-2"), DEPTH: ("2", "4"), "model": ("gpt", "llama_tiny")}
    settings = [{}]
    for key in swept:
        settings = [{**s, key: v} for s in settings for v in values[key]]
    for number, words in enumerate(settings):
        point(tmp_path, number, words, loss=1.0 + number)
    assert f"![{picture}](settings.png)" in write_sweep_report(tmp_path).read_text()
    assert (tmp_path / "settings.png").stat().st_size > 10_000


def test_folders_with_nothing_in_them(tmp_path: Path) -> None:
    assert not is_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text('{"swept": ["seed"], "points": [{"seed": "0"}]}')
    assert "**1 points: 1 waiting**" in write_sweep_report(tmp_path).read_text()
    (tmp_path / "sweep.json").write_text("{")
    assert "no point has begun" in write_sweep_report(tmp_path).read_text()
    point(tmp_path, 0, {"seed": "0"}, loss=math.nan)
    (tmp_path / "0-seed=0" / "metrics.jsonl").write_text('{"step": 1, "eval/loss": null}\n{"st')
    assert "1 finished" in write_sweep_report(tmp_path).read_text()
    with pytest.raises(FileNotFoundError):
        write_sweep_report(tmp_path / "nowhere")


def test_policies_are_compared_after_equal_steps(tmp_path: Path) -> None:
    """Of their tokens only some are trained on: here twice as many in one run as in the other."""
    for number, tokens in enumerate((100, 200)):
        folder = point(tmp_path, number, {LR: str(number)}, loss=1.0 + number, tokens=tokens)
        line = {"step": 10, "tokens": tokens, "reward/mean": 0.5}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    found = read_sweep(tmp_path)
    assert (found.unit, found.amount, found.even) == ("steps", 10, True)
    assert [s.mean for s in found.ranked] == pytest.approx([1.0, 2.0])


def test_the_same_seed_twice_is_one_measurement(tmp_path: Path) -> None:
    for number in range(2):
        point(tmp_path, number, {"seed": "0", LR: "1"}, loss=2.0)
    point(tmp_path, 2, {"seed": "0", LR: "2"}, loss=3.0)
    assert [s.spread for s in read_sweep(tmp_path).ranked] == [None, None]


def test_nothing_was_swept_if_the_record_says_so(tmp_path: Path) -> None:
    """The words of these points differ all the same, say because one was begun again."""
    for number in range(2):
        point(tmp_path, number, {LR: str(number)}, loss=1.0)
    assert read_sweep(tmp_path).swept == [LR]
    (tmp_path / "sweep.json").write_text('{"swept": []}')
    assert read_sweep(tmp_path).swept == []


def test_a_setting_with_a_failed_seed_comes_after_the_others(tmp_path: Path, capsys) -> None:
    """Whichever of its seeds survived did better than the others' mean."""
    for number, (lr, seed) in enumerate([("9", "0"), ("9", "1"), ("1", "0"), ("1", "1")]):
        failed = (lr, seed) == ("9", "1")
        point(tmp_path, number, {LR: lr, "seed": seed}, loss=None if failed else 2 - float(lr) / 9,
              status="failed" if failed else "finished")  # fmt: skip
    found = read_sweep(tmp_path)
    assert [(dict(s.words)[LR], s.planned, s.failed) for s in found.ranked] == [
        ("1", 2, 0),
        ("9", 2, 1),
    ]
    text = write_sweep_report(tmp_path).read_text()
    assert "| 2 | 9 | 1.0000 | 1 of 2, 1 failed |" in text
    assert "Settings with a failed seed come last" in text
    show_sweep(found)
    assert "1 of 2, 1 failed" in capsys.readouterr().out


@pytest.mark.parametrize("named", [None, "eval/loss"])
def test_across_tokenizers_bits_per_byte_are_compared(tmp_path: Path, named: str | None) -> None:
    """Of the longer tokens there are fewer: their loss is higher, the text's is lower."""
    for number, bits in enumerate((2.0, 1.0)):
        folder = point(tmp_path, number, {"data.tokenizer.path": str(number)}, loss=1.0 + number)
        run = json.loads((folder / "run.json").read_text())
        run["specs"]["objective"], run["tokenizer"] = named, {"fingerprint": str(number)}
        (folder / "run.json").write_text(json.dumps(run))
        with (folder / "metrics.jsonl").open("a") as file:
            for done in (5, 10):
                line = {"step": done, "tokens": 10 * done, "eval/bits_per_byte": bits}
                file.write(json.dumps(line) + "\n")
    found = read_sweep(tmp_path)
    best, objective = ("0", "eval/loss") if named else ("1", "eval/bits_per_byte")
    assert (dict(found.ranked[0].words)["data.tokenizer.path"], str(found.objective)) == (
        best,
        objective,
    )
    text = write_sweep_report(tmp_path).read_text()
    assert ("Tokenizers differ, and this is per token" in text) == bool(named)
    assert "Tokenizers differ, so after as many tokens they have not seen as much." in text
    width, height = struct.unpack(">2I", (tmp_path / "curves.png").read_bytes()[16:24])
    assert (height > 0.8 * width) == bool(named)  # no panel with the training loss per token


def test_across_tokenizers_points_are_compared_after_equal_text(tmp_path: Path) -> None:
    """Tokens of 4 bytes instead of 2: at the end better, but not after as much text."""
    for number, (size, loss) in enumerate([(2, 3.0), (4, 2.5)]):
        folder = point(tmp_path, number, {"data.tokenizer.path": str(number)}, loss=loss)
        run = json.loads((folder / "run.json").read_text())
        mixture = [{"weight": 3, "bytes": 10 * size - 5, "tokens": 10},
                   {"weight": 1, "bytes": 20 * size + 30, "tokens": 20}]  # fmt: skip
        run |= {"tokenizer": {"fingerprint": str(number)}, "data": {"sources": mixture}}
        (folder / "run.json").write_text(json.dumps(run))
    found = read_sweep(tmp_path)
    assert [one.bytes_per_token for one in found.points] == [2.0, 4.0]
    assert (found.unit, found.amount, found.even) == ("bytes", 200, False)
    assert [dict(s.words)["data.tokenizer.path"] for s in found.ranked] == ["0", "1"]
    assert [s.mean for s in found.ranked] == pytest.approx([3.0, 3.75])
    text = write_sweep_report(tmp_path).read_text()
    assert "after 200 bytes of text, which all of them have done" in text
    assert "| 2 | 1 | 3.7500 | 2.5000 (400) |" in text


def test_lists_are_shown_as_they_are(tmp_path: Path, capsys) -> None:
    """Of rich's markup the first would be a style, the second one's end."""
    values = ("[position_embedding]", "[/data/base]")
    for number, value in enumerate(values):
        point(tmp_path, number, {"init_from": value}, loss=1.0)
    show_sweep(read_sweep(tmp_path))
    follow(tmp_path, pause=0.0)
    shown = capsys.readouterr().out
    assert [shown.count(value) for value in values] == [2, 2]


def test_it_is_followed_until_nothing_goes_on(sweep: Path) -> None:
    console = Console(record=True, width=120, force_terminal=True)
    follow(sweep, console, pause=0.0)
    follow(next(sweep.glob("0-*")), console, pause=0.0)
    shown = console.export_text()
    assert "killed" in shown and "10/10" in shown and "eval/loss" in shown


class TestObjective:
    RESULT = {"final": {"eval/loss": 2.0, "x": None}, "best": {"eval/loss": {"value": 1.5}}}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("words", "value", "sign"),
        [("eval/loss", 2.0, -1), ("best:eval/loss", 1.5, -1), ("eval/accuracy", None, 1),
         ("best:reward/mean", None, 1), ("x", None, 0)],
    )  # fmt: skip
    def test_last_and_best(self, words: str, value: float | None, sign: int) -> None:
        objective = Objective.named(words)
        assert (str(objective), objective.of(self.RESULT), objective.sign) == (words, value, sign)
        assert objective.of({}) is None


class TestEffects:
    def test_a_grid_without_noise(self) -> None:
        """y = 10 a + b: of its variance, a explains 100 times as much as b, and c nothing."""
        grid = [{"a": str(a), "b": str(b), "c": str(c)} for a in (0, 1) for b in (0, 1)
                for c in (0, 1)]  # fmt: skip
        found = effects(grid, [10 * int(p["a"]) + int(p["b"]) for p in grid])
        assert [effect.field for effect in found] == ["a", "b", "c"]
        assert [effect.share for effect in found] == pytest.approx([100 / 101, 1 / 101, 0])
        assert found[0].means == pytest.approx({"0": 0.5, "1": 10.5})

    def test_one_fields_effect_is_no_noise_of_another(self) -> None:
        """3 + 0.2 a + 0.1 b: of the variance 0.04 : 0.01."""
        grid = [{"a": str(a), "b": str(b)} for a in (0, 1) for b in (0, 1)]
        found = effects(grid, [3 + 0.2 * int(p["a"]) + 0.1 * int(p["b"]) for p in grid])
        assert [effect.share for effect in found] == pytest.approx([0.8, 0.2])

    def test_against_the_definition(self) -> None:
        y = [1.0, 2.0, 4.0, 7.0, 5.0, 6.0]
        (effect,) = effects([{"a": v} for v in "xxyyzz"], y)
        mean = sum(y) / 6
        between = sum(2 * (m - mean) ** 2 for m in (1.5, 5.5, 5.5))
        within = 0.5 + 4.5 + 0.5
        expected = (between - 2 * within / 3) / (between + within + within / 3)
        assert effect.share == pytest.approx(expected)

    def test_too_few_to_tell(self) -> None:
        """Three parameters are fitted to three points."""
        found = effects(
            [{"a": "1", "b": "1"}, {"a": "2", "b": "1"}, {"a": "2", "b": "2"}], [1, 2, 3]
        )
        assert [effect.share for effect in found] == [None, None]

    def test_where_combinations_are_missing(self) -> None:
        """10 a + b, of which a = 1 was hardly tried with b = 1: b must not look like a."""
        points = [{"a": str(a), "b": str(b)} for a, b in [(0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]]
        by_a, by_b = effects(points, [10 * int(p["a"]) + int(p["b"]) for p in points])
        assert (by_a.field, by_b.field) == ("a", "b")
        assert by_a.means["1"] - by_a.means["0"] == pytest.approx(10)
        assert by_b.means["1"] - by_b.means["0"] == pytest.approx(1)
        # Squares that are left: b alone explains (0, 10, 10) and (1, 1), a alone (0, 1, 1).
        total = sum((v - 4.4) ** 2 for v in (0, 1, 1, 10, 10))
        assert by_a.share == pytest.approx(200 / 3 / total)
        assert by_b.share == pytest.approx(2 / 3 / total)

    def test_fields_that_change_together_cannot_be_told_apart(self) -> None:
        points = [{"a": v, "b": v, "c": c} for v in "xy" for c in "12"] * 2
        found = effects(points, [1.0 * (p["a"] == "x") + 3 * (p["c"] == "1") for p in points])
        assert {effect.field: effect.share for effect in found} == {
            "c": pytest.approx(0.9), "a": None, "b": None,
        }  # fmt: skip

    def test_numbers_that_all_differ_are_taken_in_thirds(self) -> None:
        points = [{"lr": str(10.0**-i)} for i in range(9)]
        (effect,) = effects(points, [float(i // 3) for i in range(9)])
        assert effect.share == pytest.approx(1.0)
        assert sorted(effect.means.values()) == pytest.approx([0, 1, 2])

    def test_order(self) -> None:
        assert in_order(["1e-2", "3", "1e-3", "3"]) == ["1e-3", "1e-2", "3"]
        assert in_order(["gpt", "a"]) == ["gpt", "a"]


def test_labels_have_room() -> None:
    assert apart(np.array([1.0]), 0.1) == {0}
    assert apart(np.arange(5.0), 0.1) == {0, 1, 2, 3, 4}
    shown = sorted(apart(np.arange(101.0), 0.1))
    assert shown[-1] == 100 and len(shown) == 11 and min(np.diff(shown)) >= 10
