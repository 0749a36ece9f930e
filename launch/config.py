"""From Hydra's configuration to our specs, with one clear message when something is wrong."""

from __future__ import annotations

import dataclasses
import functools
import logging
import secrets
import sys
import typing
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.experimental.callback import Callback
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError, Spec, spec_from_json
from llm.data.specs import PackedSpec, PaddedSpec
from llm.generate.specs import GenerateSpec
from llm.models.specs import GPTSpec, LlamaSpec
from llm.train.experiment import ExperimentSpec
from llm.train.specs import (
    AdamWSpec,
    ConstantSpec,
    LinearSpec,
    MuonSpec,
    OptaxSpec,
    PretrainSpec,
    WarmupCosineSpec,
    WarmupStableDecaySpec,
)

S = TypeVar("S", bound=Spec)

REFUSED = 2  # exit status

SCHEMAS: dict[str, dict[str, type[Spec]]] = {
    "": {"experiment": ExperimentSpec, "generate": GenerateSpec},
    "model": {"gpt": GPTSpec, "llama": LlamaSpec},
    "data": {"packed": PackedSpec, "padded": PaddedSpec},
    "trainer": {"pretrain": PretrainSpec},
    "optimizer": {"adamw": AdamWSpec, "muon": MuonSpec, "optax": OptaxSpec},
    "schedule": {
        "warmup_cosine": WarmupCosineSpec,
        "warmup_stable_decay": WarmupStableDecaySpec,
        "linear": LinearSpec,
        "constant": ConstantSpec,
    },
    "hardware": {"profile": HardwareSpec},
}


def register() -> None:
    """Tell Hydra the schemas and OmegaConf our resolvers (once per process is enough)."""
    store = ConfigStore.instance()
    for group, specs in SCHEMAS.items():
        for name, spec in specs.items():
            store.store(group=f"schema/{group}".rstrip("/"), name=name, node=schema(spec))
    OmegaConf.register_new_resolver(
        "run_id", lambda: secrets.token_hex(3), use_cache=True, replace=True
    )
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def folder_name(overrides: str) -> str:
    """Overrides as part of a folder's name: no separators, not too long for a file system."""
    return overrides.replace("/", ".").replace(" ", "")[:120] or "defaults"


@functools.cache  # one class per spec: OmegaConf compares schemas by identity
def schema(spec: type[Spec]) -> Any:  # type: ignore[arg-type,unused-ignore]
    """A spec's fields as a structured config.

    A frozen dataclass would be read-only to every override, so this makes a thawed copy of it. A
    field that takes one of several specs is left open: the config group that fills it brings its
    own schema.
    """
    hints = typing.get_type_hints(spec)
    fields: list[tuple[str, Any, Any]] = [("_target_", str, _target(spec))]
    for field in dataclasses.fields(spec):
        hint = hints[field.name]
        if _is_spec(hint):
            if hint.__subclasses__():
                fields.append((field.name, Any, dataclasses.field(default=MISSING)))
            else:
                nested = schema(hint)
                fields.append((field.name, nested, dataclasses.field(default_factory=nested)))
            continue
        args = typing.get_args(hint)
        if typing.get_origin(hint) in (list, tuple):  # OmegaConf knows lists only
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


def _target(spec: type[Spec]) -> str:
    return f"{spec.__module__}.{spec.__qualname__}"


def spec_from_config(cfg: DictConfig, expected: type[S]) -> S:
    """The composed configuration as a checked spec.

    Raises:
        RefusedError: with one line that names the key, its value and what was expected.
    """
    try:
        ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        data = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RefusedError(str(error).splitlines()[0]) from None
    spec = spec_from_json(data)
    if not isinstance(spec, expected):
        raise RefusedError(f"the root of the configuration must be a {_target(expected)}")
    return spec


def refuse(error: Exception) -> typing.NoReturn:
    """End the program with the reason and the exit status for refused input."""
    sys.stderr.write(f"Refused: {error}\n")
    raise SystemExit(REFUSED)


def start_logging() -> None:
    """Our log lines to the terminal; libraries that explain their every move are not asked to."""
    from llm.report.terminal import setup_logging

    setup_logging()
    logging.getLogger("absl").setLevel(logging.ERROR)


class RefuseEarly(Callback):
    """Checks a run before Hydra creates its folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the run's folder."""
        from launch.resume import check_run_folder

        try:
            check_run_folder(spec_from_config(config, ExperimentSpec), Path(config.hydra.run.dir))
        except RefusedError as error:
            # An exception would only become a warning here: Hydra guards itself from callbacks.
            refuse(error)


register()
