"""The specs of experiment tracking, of its dashboard, and of reports."""

from __future__ import annotations

from dataclasses import dataclass

from llm.core.spec import RefusedError, Spec, knob


def check_project(name: str) -> None:
    """Refuse what W&B does not take as a project's name."""
    if not name.strip() or set(name) & set("/\\#?%:"):
        raise RefusedError(f"project={name!r}: expected a name without / \\ # ? % :")


@dataclass(frozen=True, kw_only=True)
class TrackerSpec(Spec):
    """Where metrics go besides metrics.jsonl: Weights & Biases, or nowhere."""

    mode: str = knob(
        "auto",
        "auto: online if logged in, else offline (WANDB_MODE decides if set)",
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str = knob("lernaean", "W&B project")
    entity: str | None = knob(None, "W&B user or team; null: the account's default")
    group: str | None = knob(None, "runs to be shown together, for instance one sweep")
    job_type: str | None = knob(None, "kind of run, for instance pretrain, sft or grpo")
    tags: tuple[str, ...] = knob((), "words to find the run by, at most 64 characters each")
    name: str | None = knob(None, "name of the run in W&B; null: the title of the run")
    alerts: bool = knob(
        False, "W&B tells you (mail, Slack) when the run ends or its loss is no longer a number"
    )
    notes: str | None = knob(None, "a sentence about the run, shown in W&B and in report.md")

    def check(self) -> None:
        """W&B refuses these only after start-up; here they are refused at once."""
        check_project(self.project)
        bad = [tag for tag in self.tags if not 1 <= len(tag) <= 64]
        if bad:
            raise RefusedError(f"tags={bad[0]!r}: expected 1 to 64 characters, got {len(bad[0])}")


@dataclass(frozen=True, kw_only=True)
class DashboardSpec(Spec):
    """One call of launch/dashboard.py."""

    project: str = knob(doc="W&B project whose runs are shown")
    entity: str | None = knob(None, "W&B user or team; null: the account's default")
    name: str = knob("Lernaean", "name of the view in W&B")
    group: str | None = knob(None, "show the runs of this group (sweep) only; null: of all")
    smoothing: float = knob(
        0.6, "of noisy curves, 0 (none) to 1; what was measured stays visible", ge=0, lt=1
    )
    max_runs: int = knob(20, "curves in a panel", gt=0)
    dry_run: bool = knob(False, "write the dashboard's JSON to a file instead of saving it in W&B")

    def check(self) -> None:  # noqa: D102
        check_project(self.project)
        if not self.name.strip():
            raise RefusedError(f"name={self.name!r}: expected a name for the view")


@dataclass(frozen=True, kw_only=True)
class ReportSpec(Spec):
    """A look at what there is of a run or a sweep."""

    folder: str = knob(doc="of a run or a sweep; last: the newest run")
    follow: bool = knob(False, "show how it goes on until it ends, in the terminal, then report")
