"""The whole experiment as one spec, and the checks that need to see several of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError, Spec, knob
from llm.data.specs import DataSpec
from llm.models.specs import ModelSpec
from llm.report.objective import Objective
from llm.report.specs import TrackerSpec
from llm.train.trainer_spec import TrainerSpec


@dataclass(frozen=True, kw_only=True)
class EvalSpec(Spec):
    """Held-out loss."""

    every: int = knob(150, "steps between evaluations; there is always one at start and end", gt=0)
    batches: int | None = knob(None, "at most this many batches each time; null takes all", gt=0)


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec(Spec):
    """What is saved while training; there is always a checkpoint of the end."""

    every: int = knob(150, "steps between checkpoints", gt=0)
    keep: int = knob(2, "newest checkpoints that are kept", gt=0)
    keep_best: bool = knob(True, "keep the checkpoint with the lowest held-out loss as well")


@dataclass(frozen=True, kw_only=True)
class SamplesSpec(Spec):
    """Text sampled while training, to see what the model has learned."""

    every: int | None = knob(150, "steps between samples; null draws none", gt=0)
    prompts: Sequence[str] = knob(
        ["", "def "], "texts to go on from; an empty one starts a document"
    )
    max_new_tokens: int = knob(64, "tokens per sample", gt=0)
    temperature: float = knob(0.8, "0 takes the likeliest token", ge=0)
    top_p: float = knob(0.95, "sample from the likeliest tokens that hold this much", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class ExperimentSpec(Spec):
    """Everything that defines a run."""

    name: str = knob(doc="name of the run's folder and W&B run")
    seed: int = knob(0, "all randomness follows from it", ge=0, lt=2**63)
    init_from: str | Sequence[str] | None = knob(
        None,
        "first weights: pretrained (the model's own), scratch, a run folder, hf:org/name, ...; "
        "null: the trainer decides",
    )
    plan: str = knob(
        "refuse", "if the run cannot fit the memory: refuse, warn, or off, which does not look",
        choices=("refuse", "warn", "off"),
    )  # fmt: skip
    resume: str | None = knob(None, "true, last or a run folder: continue that run")
    objective: str | None = knob(
        None,
        "what runs of a sweep are compared by and a sweeper optimises: a metric's last value, or "
        "best:METRIC; null: eval/loss, for grpo eval/accuracy",
    )
    profile: bool = knob(
        False, "trace steps 3 to 5, for Perfetto and XProf, in the folder profile/ of the run"
    )
    model: ModelSpec = knob(doc="model")
    data: DataSpec = knob(doc="data")
    trainer: TrainerSpec = knob(doc="trainer")
    hardware: HardwareSpec = knob(doc="hardware profile")
    eval: EvalSpec = knob(EvalSpec(), "held-out loss")
    checkpoint: CheckpointSpec = knob(CheckpointSpec(), "checkpoints")
    samples: SamplesSpec = knob(SamplesSpec(), "text sampled while training")
    tracker: TrackerSpec = knob(TrackerSpec(), "Weights & Biases")

    @property
    def first_weights(self) -> str | Sequence[str] | None:
        """Checkpoint sources to begin with; None for random weights."""
        if self.init_from is None and self.trainer.pretrained:
            return self.model.pretrained or None
        if self.init_from == "pretrained":
            return self.model.pretrained
        return None if self.init_from == "scratch" else self.init_from

    @property
    def resumes(self) -> bool:
        """Continue the run that the folder holds, if it holds one."""
        return self.resume is not None and self.resume.lower() == "true"

    @property
    def goal(self) -> Objective:
        """What its runs are compared by."""
        return Objective.named(self.objective or self.trainer.metrics(self)[0])

    def check(self) -> None:  # noqa: D102
        if self.resume is not None and self.resume.lower() not in ("true", "false"):
            raise RefusedError(
                f"resume={self.resume}: a run's folder is named on the command line of "
                "launch/main.py only. Elsewhere say true or false; for a plan, give the words of "
                "the run (.hydra/overrides.yaml in its folder)"
            )
        data, model = self.data, self.model
        if self.init_from == "pretrained" and not model.pretrained:
            raise RefusedError(
                f"init_from=pretrained: model={model.name} has no published weights; name a "
                "checkpoint, or set model.pretrained"
            )
        if not self.name.strip() or "/" in self.name:
            raise RefusedError(
                f"name={self.name}: becomes part of a folder's name; not empty, no /"
            )
        if data.seq_len > model.max_seq_len:
            raise RefusedError(
                f"data.seq_len={data.seq_len}: longer than model.max_seq_len={model.max_seq_len}"
            )
        self.trainer.check_with(self)
        vocab = data.tokenizer.vocab_size
        if (
            data.tokenizer.path is None
            and model.vocab_size is not None
            and model.vocab_size < vocab
        ):
            raise RefusedError(
                f"model.vocab_size={model.vocab_size}: smaller than "
                f"data.tokenizer.vocab_size={vocab}; set it to null to take the tokenizer's"
            )
        if self.samples.every and self.samples.max_new_tokens >= model.max_seq_len:
            raise RefusedError(
                f"samples.max_new_tokens={self.samples.max_new_tokens}: must be less than "
                f"model.max_seq_len={model.max_seq_len}"
            )
        self._check_objective()

    def _check_objective(self) -> None:
        metric, known = self.goal.metric, self.trainer.metrics(self)
        if not any(fnmatchcase(metric, pattern) for pattern in known):
            why = "" if self.data.eval_fraction else " (data.eval_fraction=0: no eval/... metrics)"
            raise RefusedError(
                f"objective={self.objective}: trainer={self.trainer.name} logs "
                f"{', '.join(known)}{why}"
            )
        if self.goal.best and not self.goal.sign:
            raise RefusedError(
                f"objective={self.objective}: of {metric} neither high nor low values are better, "
                f"so there is no best; objective={metric} takes the last"
            )
