"""What a run would need: memory and time of each of its stages, worked out from its spec alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llm.core.devices import GIB
from llm.core.spec import RefusedError
from llm.generate.batch import SEGMENT
from llm.generate.rows import SMALLEST, bucket
from llm.models.specs import ModelSpec
from llm.plan import programs, roofline
from llm.plan.memory import MemoryPlan, Need
from llm.plan.roofline import Work
from llm.plan.target import Target
from llm.train.experiment import ExperimentSpec
from llm.train.grpo.spec import GRPOSpec
from llm.train.parts import Parts
from llm.train.trainable import split


@dataclass(frozen=True)
class Stage:
    """A program that the run calls."""

    name: str
    need: Need
    """Bytes on one device while it runs."""
    work: Work
    per_step: float
    """Times per optimizer step."""
    program: Callable[[Parts, dict[str, Any]], jax.stages.Traced] | None
    """Traces it, for parts with devices and the compiler's options; None: it is one copy."""


@dataclass(frozen=True)
class Estimate:
    """Of a run on a target."""

    experiment: ExperimentSpec
    target: Target
    model: ModelSpec
    """With the size of its vocabulary."""
    parameters: int
    trained: int
    tokens_per_step: int
    """See `TrainerSpec.tokens_per_step`."""
    model_flops: float
    """Of a step, without what is computed again."""
    stages: tuple[Stage, ...]

    @property
    def peak(self) -> Stage:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda stage: stage.need.total)

    @property
    def fits(self) -> bool:
        """The memory of a device is enough."""
        return self.peak.need.total <= self.target.memory

    @property
    def step_seconds(self) -> float | None:
        """Of an optimizer step, by the roofline."""
        times = [stage.work.seconds(self.target) for stage in self.stages]
        if None in times:
            return None
        pairs = zip(self.stages, times, strict=True)
        return sum(stage.per_step * (seconds or 0) for stage, seconds in pairs)

    @property
    def mfu(self) -> float | None:
        """By the roofline."""
        seconds = self.step_seconds
        if not seconds:
            return None
        return self.model_flops / (seconds * self.target.flops * self.target.spec.devices)

    @property
    def device_hours(self) -> float | None:
        """Of all steps, by the roofline."""
        seconds = self.step_seconds
        if seconds is None:
            return None
        return seconds * self.experiment.trainer.steps * self.target.spec.devices / 3600

    def to_json(self) -> dict[str, Any]:
        """All figures; bytes, seconds and FLOP."""
        target, seconds = self.target, self.step_seconds
        return {
            "device": target.name,
            "devices": target.spec.devices,
            "memory_bytes": target.memory,
            "fits": self.fits,
            "margin_bytes": target.memory - self.peak.need.total,
            "peak_bytes": self.peak.need.total,
            "peak_stage": self.peak.name,
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "tokens_per_step": self.tokens_per_step,
            "flops_per_token": self.model_flops / self.tokens_per_step,
            "flops_per_step": self.model_flops,
            "step_seconds": seconds,
            "tokens_per_second": self.tokens_per_step / seconds if seconds else None,
            "mfu": self.mfu,
            "device_hours": self.device_hours,
            "stages": [
                {
                    "name": stage.name,
                    "bytes": stage.need.total,
                    "parts": stage.need.parts,
                    "flops": stage.work.flops,
                    "seconds": stage.work.seconds(target),
                    "per_step": stage.per_step,
                }
                for stage in self.stages
            ],
        }


def estimate(experiment: ExperimentSpec, target: Target, vocabulary: int | None = None) -> Estimate:
    """The formulas; touches no device, reads no data.

    A tokenizer that the run will train is taken to become as large as it may. A prompt of GRPO is
    taken to be as long as `data.seq_len` allows.

    Args:
        experiment: what is to run.
        target: what it is to run on.
        vocabulary: rows of the embedding, where first weights decide it (`Origin.vocabulary`).

    Raises:
        UnknownVocabularyError: it depends on what is not read here.
    """
    model = settled_model(experiment, vocabulary)
    parts = Parts(experiment, model, target.spec, target.platform, target.mesh)
    memory = MemoryPlan(parts)
    params = parts.factory.template.params
    trained, _ = split(model, experiment.trainer.freeze, params)
    tokens = experiment.trainer.tokens_per_step(experiment)
    kept = memory.kept_per_token()
    stages = [
        Stage(
            "train step",
            memory.train_step(),
            roofline.train_step(parts, tokens, kept),
            1,
            programs.train_step,
        )
    ]
    if isinstance(experiment.trainer, GRPOSpec):
        stages += _rollout(experiment.trainer, parts, memory, tokens)
    return Estimate(
        experiment,
        target,
        model,
        _count(params),
        _count(trained),
        tokens,
        roofline.model_flops(parts, tokens),
        tuple(stages),
    )


class UnknownVocabularyError(RefusedError):
    """How many rows the embedding has depends on files that a plan does not read."""


def settled_model(experiment: ExperimentSpec, vocabulary: int | None) -> ModelSpec:
    """The model with the size of its vocabulary.

    Raises:
        UnknownVocabularyError: its tokenizer comes from elsewhere.
    """
    model, tokenizer = experiment.model, experiment.data.tokenizer
    if vocabulary is not None:
        return model.replace(vocab_size=vocabulary)
    if model.vocab_size is not None:
        return model
    if experiment.first_weights is not None or (
        tokenizer.path is not None and not Path(tokenizer.path).exists()
    ):
        raise UnknownVocabularyError(
            "model.vocab_size=null: the tokenizer is not on this machine; say how many tokens it "
            "has, model.vocab_size=..."
        )
    if tokenizer.path is None:
        return model.replace(vocab_size=tokenizer.vocab_size)
    from llm.data.tokenizer import Tokenizer

    return model.replace(vocab_size=Tokenizer.load(tokenizer.path).vocab_size)


def _rollout(spec: GRPOSpec, parts: Parts, memory: MemoryPlan, tokens: int) -> list[Stage]:
    """How GRPO comes by its batches."""
    data, model = parts.experiment.data, parts.model
    per_step = 1 / (spec.epochs * spec.mini_batches)
    longest, new = data.seq_len - spec.max_new_tokens, spec.max_new_tokens
    answers = data.batch_size * spec.group_size
    most = spec.rows_decoded or answers
    rows = bucket(min(most, answers), largest=most)
    turns = math.ceil(answers / rows)
    cache = memory.cache(1, 1)
    prefill = roofline.forward(parts, data.batch_size * longest, longest)
    decode = roofline.decode(parts, rows, longest, new, cache)
    stages = [
        Stage(
            "prefill",
            memory.prefill(data.batch_size, longest, rows, new),
            prefill,
            per_step,
            lambda parts, _: programs.prefill_prompts(parts, data.batch_size, longest),
        ),
        Stage(
            "decode",
            memory.decode(rows, data.seq_len),
            decode,
            per_step * turns,
            lambda parts, _: programs.decode_segment(parts, spec.sampling(), rows, data.seq_len),
        ),
    ]
    begun = longest - 1 + min(SEGMENT, new)
    if bucket(begun, SMALLEST) < bucket(data.seq_len, SMALLEST, model.max_seq_len):
        copied = 2 * rows * longest * cache
        stages.append(
            Stage("larger caches", memory.grow(rows, data.seq_len), Work(0, copied), per_step, None)
        )
    if spec.scores:
        work = roofline.score(parts, tokens)
        times = len(spec.scores) * per_step * spec.mini_batches
        stages.append(Stage("score", memory.score(), work, times, programs.score))
    return stages


def gib(size: float) -> float:
    """Bytes in GiB."""
    return size / GIB


def _count(tree: Any) -> int:
    return sum(p.size for p in jax.tree.leaves(tree))
