"""What to change for a run to fit: small changes first, each tried by the same formulas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError, Spec
from llm.plan.estimate import Estimate, estimate
from llm.plan.target import Target
from llm.train.experiment import ExperimentSpec
from llm.train.grpo.spec import GRPOSpec

_MOST_DEVICES = 8
_RANK = 16


@dataclass(frozen=True)
class Remedy:
    """A change that makes a run fit."""

    words: tuple[str, ...]
    """To add to the command line."""
    estimate: Estimate
    same: bool
    """It computes the same."""


def remedies(found: Estimate, devices: int = _MOST_DEVICES) -> list[Remedy]:
    """Up to one of each kind: how it runs, in which types, what is trained, on how many devices.

    Args:
        found: what does not fit.
        devices: that there are.
    """
    kinds = (
        (_ways_to_run(found), True),
        (_smaller_types(found), False),
        (_adapters(found), False),
        (_more_devices(found, devices), True),
    )
    chosen = []
    for candidates, same in kinds:
        for words in candidates:
            tried = _tried(found, words)
            if tried is not None and tried.fits:
                chosen.append(Remedy(words, tried, same))
                break
    return chosen


def _ways_to_run(found: Estimate) -> Iterator[tuple[str, ...]]:
    """Those that cost no time first: less at once, then what is computed again."""
    hardware, trainer = found.target.spec, found.experiment.trainer
    rows = trainer.batch_rows(found.experiment, hardware, found.target.platform)
    smaller = [""]
    each = rows.at_once // hardware.row_shards
    while each > 1:
        each //= 2
        smaller.append(f"hardware.micro_batch={each}")
    chunk = hardware.loss_chunk or 0
    chunks = ["", f"hardware.loss_chunk={chunk // 4}"] if chunk > 1024 else [""]
    leaner = {"none": ("dots", "block"), "dots": ("block",), "block": ()}[hardware.remat]
    policies = ["", *(f"hardware.remat={policy}" for policy in leaner)]
    decoded = [""]
    if isinstance(trainer, GRPOSpec) and not found.experiment.resumes:
        answers = trainer.rows_decoded or found.experiment.data.batch_size * trainer.group_size
        decoded += [f"trainer.rows_decoded={answers >> n}" for n in (1, 2, 3) if answers >> n]
    for policy, fewer, chunked, micro in product(policies, decoded, chunks, smaller):
        words = tuple(word for word in (micro, policy, chunked, fewer) if word)
        if words:
            yield words


def _smaller_types(found: Estimate) -> Iterator[tuple[str, ...]]:
    """Two bytes a number instead of four, where devices are made for that."""
    spec = found.target.spec
    if found.target.platform == "cpu":
        return
    kind = "compute" if spec.compute_dtype == "float32" else "cache"
    if getattr(spec, f"{kind}_dtype") == "float32":
        word = f"hardware.{kind}_dtype=bfloat16"
        yield (word,)
        for words in _ways_to_run(found):
            yield (word, *words)


def _adapters(found: Estimate) -> Iterator[tuple[str, ...]]:
    """Fewer weights are trained, beside others that know something."""
    experiment = found.experiment
    if experiment.model.lora.rank or experiment.first_weights is None or experiment.resumes:
        return
    adapters = f"model.lora.rank={_RANK}"
    yield (adapters,)
    for words in _ways_to_run(found):
        yield (adapters, *words)


def _more_devices(found: Estimate, devices: int) -> Iterator[tuple[str, ...]]:
    """Weights are split."""
    if found.target.platform == "cpu":
        return
    spec = found.target.spec
    for n in (2 * spec.fsdp, 4 * spec.fsdp, 8 * spec.fsdp):
        if n * spec.data_parallel * spec.tensor > devices:
            return
        yield (f"hardware.fsdp={n}",)
        yield (f"hardware.fsdp={n}", "hardware.micro_batch=1")
        yield (f"hardware.fsdp={n}", "hardware.micro_batch=1", "hardware.remat=block")


def _tried(found: Estimate, words: Sequence[str]) -> Estimate | None:
    """The estimate with these words; None if they are not accepted."""
    try:
        experiment = _with(found.experiment, words)
        spec = _with_hardware(found.target, experiment.hardware, words)
        return estimate(experiment, spec, found.model.vocab_size)
    except RefusedError:
        return None


def _with(experiment: ExperimentSpec, words: Sequence[str]) -> ExperimentSpec:
    changes = dict(word.split("=") for word in words)
    hardware = {
        k.removeprefix("hardware."): _value(v) for k, v in changes.items() if "hardware" in k
    }
    parts: dict[str, Spec] = {}
    if hardware:
        # The kernel is chosen anew: that for one device may be for one only.
        parts["hardware"] = experiment.hardware.replace(**hardware)
    if "model.lora.rank" in changes:
        lora = experiment.model.lora.replace(rank=int(changes["model.lora.rank"]))
        parts["model"] = experiment.model.replace(lora=lora)
    if "trainer.rows_decoded" in changes:
        decoded = int(changes["trainer.rows_decoded"])
        parts["trainer"] = experiment.trainer.replace(rows_decoded=decoded)
    return experiment.replace(**parts)


def _with_hardware(target: Target, asked: HardwareSpec, words: Sequence[str]) -> Target:
    changes = dict(
        word.removeprefix("hardware.").split("=") for word in words if "hardware" in word
    )
    values = {name: _value(value) for name, value in changes.items()}
    if "fsdp" in values and target.spec.attention == "flash":
        values["attention"] = "cudnn"
    flops = target.flops
    if "compute_dtype" in values:
        # What depends on it is settled anew, but for what the profile itself says.
        values |= {"attention": asked.attention, "cache_dtype": asked.cache_dtype}
        flops *= 1 if asked.peak_tflops else 2  # of fp32, see `target_by_name`
    spec = target.spec.replace(**values).settled(target.platform)
    return Target(spec, target.platform, target.name, flops, target.bandwidth, target.memory)


def _value(text: str) -> int | str:
    return int(text) if text.isdigit() else text
