"""A W&B workspace for our runs: which panels, in which sections, over tokens, seeds together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llm.report.specs import DashboardSpec
from llm.report.wandb_summary import aggregate_of


@dataclass(frozen=True)
class Curves:
    """One panel: some metrics over the tokens trained on."""

    title: str
    metrics: tuple[str, ...] = ()
    pattern: str | None = None
    """Regular expression of further metrics, where names depend on the run."""
    smooth: bool = False
    log_y: bool = False


SECTIONS: dict[str, tuple[Curves, ...]] = {
    "train": (
        Curves("Training loss", ("train/loss",), smooth=True),
        Curves("Gradient norm", ("train/grad_norm",), smooth=True, log_y=True),
        Curves("Learning rate", ("train/lr",)),
    ),
    "eval": (
        Curves("Held-out loss", ("eval/loss",)),
        Curves("Bits per byte", ("eval/bits_per_byte",)),
        Curves("Answers equal to the data's", ("eval/exact_match",)),
        Curves("Right answers", ("eval/accuracy",), pattern=r"eval/pass_at_\d+"),
        Curves("Reward of held-out answers", ("eval/reward",)),
        Curves("Held-out answers that were not judged", ("eval/missing_fraction",)),
        Curves("Length of held-out answers, tokens", ("eval/length_mean",)),
        Curves("Held-out loss by source", pattern=r"eval/.+/loss"),
        Curves("Bits per byte by source", pattern=r"eval/.+/bits_per_byte"),
    ),
    "rl": (
        Curves("Reward", ("reward/mean",), smooth=True),
        Curves("Spread of reward within a group", ("reward/std",), smooth=True),
        Curves(
            "Groups: all right, none right, some",
            ("reward/all_right_fraction", "reward/all_wrong_fraction", "reward/mixed_fraction"),
            smooth=True,
        ),
        Curves(
            "Groups without signal, answers without reward",
            ("reward/zero_std_fraction", "reward/missing_fraction"),
            smooth=True,
        ),
        Curves("Each reward, and its spread", pattern=r"reward/.+", smooth=True),
        Curves("Divergence of the policy", ("policy/kl",), smooth=True),
        Curves("The same, other estimates", ("policy/kl_k1", "policy/kl_k2"), smooth=True),
        Curves("Entropy of the policy", ("policy/entropy",), smooth=True),
        Curves("Clipped tokens", ("policy/clip_fraction",), smooth=True),
        Curves("Ratio of probabilities, new to old", ("policy/ratio",), smooth=True),
        Curves("Sampling against training, log-probs", ("policy/sampler_logprob_gap",)),
        Curves(
            "Length of answers, tokens",
            ("completions/length_mean", "completions/length_max"),
            smooth=True,
        ),
        Curves("Answers that end by themselves", ("completions/stopped_fraction",), smooth=True),
    ),
    "throughput": (
        Curves("Tokens per second", ("perf/tokens_per_second",), smooth=True),
        Curves("Model FLOP utilisation", ("perf/mfu",), smooth=True),
        Curves(
            "Time of a step, and of it waiting for data, s", ("perf/step_time", "perf/data_wait")
        ),
        Curves("Device memory, GiB", ("perf/memory_gib",)),
        Curves("Programs compiled so far", ("perf/compile_count",)),
        Curves("Time to compile them, s", ("perf/compile_time",)),
        Curves("Time of prefill and decoding, s", ("perf/prefill_time", "perf/decode_time")),
        Curves("Decoded tokens per second", ("perf/decode_tokens_per_second",), smooth=True),
    ),
}
"""What the trainers log; a test runs them and holds the two together."""

# W&B's own measurements, over time: they are not taken at steps.
SYSTEM: dict[str, tuple[str, ...]] = {
    "GPU utilisation, %": tuple(f"system/gpu.{i}.gpu" for i in range(8)),
    "GPU memory, %": tuple(f"system/gpu.{i}.memoryAllocated" for i in range(8)),
    "GPU power, W": tuple(f"system/gpu.{i}.powerWatts" for i in range(8)),
    "GPU temperature, °C": tuple(f"system/gpu.{i}.temp" for i in range(8)),
    "CPU of the process, %": ("system/cpu",),
    "Memory of the process, MB": ("system/proc.memory.rssMB",),
    "Memory of the machine, %": ("system/memory_percent",),
}
TABLES = ("samples", "completions")

_COLUMNS = ("eval/loss", "eval/bits_per_byte", "eval/accuracy", "reward/mean", "train/loss")


def dashboard(spec: DashboardSpec, entity: str) -> Any:
    """The workspace, not saved yet.

    Args:
        spec: project, name and so on.
        entity: W&B user or team that it will belong to.

    Returns:
        `wandb_workspaces.workspaces.Workspace`.
    """
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws

    sections = [
        ws.Section(
            name=name,
            panels=[_line_plot(curves, spec.smoothing) for curves in panels],
            is_open=name in ("train", "eval"),
            panel_settings=ws.SectionPanelSettings(x_axis="tokens"),
        )
        for name, panels in SECTIONS.items()
    ]
    filters = expr.And(expr.Metric("Group") == spec.group) if spec.group else ""
    return ws.Workspace(
        entity=entity,
        project=spec.project,
        name=spec.name,
        sections=[*sections, _system(), _samples()],
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=spec.max_runs),
        runset_settings=ws.RunsetSettings(
            # Every sweep is a set of its own, and in it the seeds of one setting are one curve.
            groupby=[expr.Metric("Group"), expr.Config("variant")],
            filters=filters,
            pinned_columns=[f"summary:{_best(name)}" for name in _COLUMNS],
        ),
    )


def to_json(workspace: Any) -> dict[str, Any]:
    """What W&B would be sent: the workspace's address and its view."""
    view = workspace._to_model()
    return {
        "entity": view.entity,
        "project": view.project,
        "name": view.display_name,
        "spec": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def _line_plot(curves: Curves, smoothing: float) -> Any:
    from wandb_workspaces.reports.v2 import interface as wr

    smooth = curves.smooth and smoothing > 0
    pattern = "|".join([*map(_exactly, curves.metrics), curves.pattern]) if curves.pattern else None
    return wr.LinePlot(
        title=curves.title,
        x="tokens",
        y=[] if pattern else list(curves.metrics),
        metric_regex=f"^({pattern})$" if pattern else None,
        title_x="tokens",
        log_y=curves.log_y or None,
        smoothing_type="exponentialTimeWeighted" if smooth else "none",
        smoothing_factor=smoothing if smooth else None,
        smoothing_show_original=smooth,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _exactly(name: str) -> str:
    return name.replace(".", r"\.")


def _best(name: str) -> str:
    return f"{name}.{aggregate_of(name)}"


def _system() -> Any:
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    x = "RelativeTime(Process)"
    return ws.Section(
        name="system",
        panels=[wr.LinePlot(title=title, x=x, y=list(names)) for title, names in SYSTEM.items()],
        panel_settings=ws.SectionPanelSettings(x_axis=x),
    )


def _samples() -> Any:
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    return ws.Section(
        name="samples",
        panels=[wr.WeavePanelSummaryTable(table_name=name) for name in TABLES],
        layout_settings=ws.SectionLayoutSettings(columns=1, rows=len(TABLES)),
        is_open=True,
    )
