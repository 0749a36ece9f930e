import numpy as np
import pytest
from matplotlib.image import imread

from llm.report import plots
from llm.report.plots import Curve, draw_curves, smooth, thin_out


def curve(name, values, every=1000):
    values = np.asarray(values, np.float64)
    return Curve(name, every * np.arange(1, values.size + 1, dtype=np.float64), values)


def draw(tmp_path, *curves):
    path = tmp_path / "curves.png"
    assert draw_curves(curves, path, "a run")
    picture = imread(path)
    assert picture[..., :3].std() > 0.01  # something is on it
    return picture


@pytest.mark.parametrize(
    "values",
    [[2.0], [0.0], [2.0, 2.0], [-1.0, 1.0], [np.nan, 3.0, np.inf, 2.0], [1e-9, 1e9], [0.0] * 30],
    ids=str,
)
def test_odd_values_are_drawn(tmp_path, values):
    names = ("train/loss", "eval/loss", "train/lr", "train/grad_norm", "reward/mean")
    draw(tmp_path, *(curve(name, values) for name in names))


def test_a_share_is_on_a_linear_axis_and_rounding_is_flat(tmp_path, monkeypatch):
    scales = {}
    monkeypatch.setattr(plots, "scale", lambda axes, values, **how: scales.__setitem__(
        axes.get_title(loc="left"), (how["linear"], axes.get_ylim())))  # fmt: skip
    noise = 1e-8 * np.cos(np.arange(30))
    draw(
        tmp_path, curve("reward/mean", [0.03, 0.5, 0.9]), curve("policy/kl", noise),
        curve("train/loss", noise + 1e-5), curve("train/grad_norm", [1.0, 9.0]),
    )  # fmt: skip
    assert scales["Reward"][0] and scales["Divergence of the policy"][0] and scales["Loss"][0]
    assert not scales["Gradient norm"][0]
    np.testing.assert_allclose(scales["Divergence of the policy"][1], [-1e-5, 1e-5])
    np.testing.assert_allclose(scales["Loss"][1], [0, 2e-5], atol=1e-9)


def test_only_the_panels_that_have_data_are_drawn(tmp_path):
    one = draw(tmp_path, curve("train/loss", [3.0, 2.0]))
    two = draw(tmp_path, curve("train/loss", [3.0, 2.0]), curve("train/lr", [1e-4, 2e-4]))
    assert two.shape[0] > one.shape[0]


@pytest.mark.parametrize("curves", [[], [("train/loss", [np.nan])], [("other/name", [1.0])]])
def test_nothing_to_draw_writes_no_file(tmp_path, curves):
    path = tmp_path / "curves.png"
    assert not draw_curves([curve(*c) for c in curves], path, "a run")
    assert not path.exists()


def test_a_million_points_are_thinned_out_and_no_spike_is_lost(tmp_path):
    values = np.random.default_rng(0).normal(3.0, 0.1, 1_000_000)
    values[123_456] = 50.0
    tokens, thin = thin_out(np.arange(values.size, dtype=np.float64), values)
    assert thin.size < 3100
    assert thin.max() == 50.0
    assert (tokens[0], tokens[-1]) == (0, values.size - 1)
    assert np.all(np.diff(tokens) > 0)
    draw(tmp_path, curve("train/loss", values), curve("perf/tokens_per_second", values))


def test_smoothing_is_a_running_mean_that_leaves_the_start_alone():
    rng = np.random.default_rng(0)
    assert np.allclose(smooth(np.full(500, 2.0)), 2.0)
    values = np.linspace(9.0, 1.0, 500)
    assert np.allclose(smooth(values)[:4], values[:4])
    assert smooth(rng.normal(size=5000))[1000:].std() < 0.1
