"""The specs of experiment tracking and of reports."""

from __future__ import annotations

from dataclasses import dataclass

from llm.core.spec import RefusedError, Spec, knob


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
    notes: str | None = knob(None, "a sentence about the run, shown in W&B and in report.md")

    def check(self) -> None:
        """W&B refuses these only after start-up; here they are refused at once."""
        if not self.project.strip() or set(self.project) & set("/\\#?%:"):
            raise RefusedError(f"project={self.project!r}: expected a name without / \\ # ? % :")
        bad = [tag for tag in self.tags if not 1 <= len(tag) <= 64]
        if bad:
            raise RefusedError(f"tags={bad[0]!r}: expected 1 to 64 characters, got {len(bad[0])}")


@dataclass(frozen=True, kw_only=True)
class ReportSpec(Spec):
    """A look at what there is of a run or a sweep."""

    folder: str = knob(doc="of a run or a sweep; last: the newest run")
    follow: bool = knob(False, "show how it goes on until it ends, in the terminal, then report")
