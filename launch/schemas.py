"""The specs that the files of conf/ are checked by, as Hydra's structured configs."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Sequence
from typing import Any

from omegaconf import MISSING

from llm.core.hardware import HardwareSpec
from llm.core.spec import Spec, spec_target
from llm.data.specs import PackedSpec, PaddedSpec
from llm.eval.specs import EvaluateSpec
from llm.generate.chat_spec import ChatSpec
from llm.generate.specs import GenerateSpec
from llm.hub.specs import ExportSpec
from llm.models.specs import GPTSpec, LlamaSpec
from llm.plan.specs import PlanSpec
from llm.report.specs import DashboardSpec, ReportSpec
from llm.train.experiment import ExperimentSpec
from llm.train.grpo.spec import GRPOSpec
from llm.train.journey_spec import JourneySpec
from llm.train.optimizer_specs import AdamWSpec, MuonSpec, OptaxSpec
from llm.train.schedules import ConstantSpec, LinearSpec, WarmupCosineSpec, WarmupStableDecaySpec
from llm.train.supervised_specs import PretrainSpec, SFTSpec
from llm.train.tokenizer_spec import TokenizerTrainingSpec

SCHEMAS: dict[str, type[Spec]] = {
    # What a program takes.
    "experiment": ExperimentSpec,
    "plan": PlanSpec,
    "generate": GenerateSpec,
    "chat": ChatSpec,
    "evaluate": EvaluateSpec,
    "export": ExportSpec,
    "tokenizer": TokenizerTrainingSpec,
    "journey": JourneySpec,
    "dashboard": DashboardSpec,
    "report": ReportSpec,
    # What an option of a group sets.
    "gpt": GPTSpec,
    "llama": LlamaSpec,
    "packed": PackedSpec,
    "padded": PaddedSpec,
    "pretrain": PretrainSpec,
    "sft": SFTSpec,
    "grpo": GRPOSpec,
    "adamw": AdamWSpec,
    "muon": MuonSpec,
    "optax": OptaxSpec,
    "warmup_cosine": WarmupCosineSpec,
    "warmup_stable_decay": WarmupStableDecaySpec,
    "linear": LinearSpec,
    "constant": ConstantSpec,
    "hardware": HardwareSpec,
}
"""For a file of conf/ that has NAME_schema among its defaults."""

_schemas: dict[type[Spec], Any] = {}


def schema(spec: type[Spec]) -> Any:
    """A spec's fields as a structured config.

    A frozen dataclass would be read-only to every override, so this makes a thawed copy of it. A
    field that takes one of several specs is left open: the config group that fills it brings its
    own schema. There is one copy per spec, since OmegaConf compares schemas by identity.
    """
    if spec not in _schemas:
        _schemas[spec] = _thawed(spec)
    return _schemas[spec]


def _thawed(spec: type[Spec]) -> Any:
    hints = typing.get_type_hints(spec)
    fields: list[tuple[str, Any, Any]] = [("_target_", str, spec_target(spec))]
    for field in dataclasses.fields(spec):
        hint = hints[field.name]
        if any(typing.get_origin(arg) is Sequence for arg in typing.get_args(hint)):
            hint = Any  # `str | Sequence[str]`: OmegaConf has no such unions; the spec checks it
        if _is_spec(hint):
            if hint.__subclasses__():
                fields.append((field.name, Any, dataclasses.field(default=MISSING)))
            else:
                nested = schema(hint)
                fields.append((field.name, nested, dataclasses.field(default_factory=nested)))
            continue
        args = typing.get_args(hint)
        if typing.get_origin(hint) in (list, tuple, Sequence):  # OmegaConf knows lists only
            hint = list[schema(args[0]) if _is_spec(args[0]) else args[0]]  # type: ignore[misc]
        if isinstance(field.default, tuple):
            default = dataclasses.field(default_factory=functools.partial(list, field.default))
        elif field.default_factory is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=field.default_factory)
        elif field.default is not dataclasses.MISSING:
            default = dataclasses.field(default=field.default)
        else:
            default = dataclasses.field(default=MISSING)
        fields.append((field.name, hint, default))
    return dataclasses.make_dataclass(spec.__name__, fields)


def _is_spec(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Spec)
