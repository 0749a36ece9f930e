"""What Hydra gets from us, and what we make of what it composes."""

from __future__ import annotations

import secrets
import warnings
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.folder_names import folder_name, point_folder
from launch.help import explained_keys, option_groups
from launch.hydra_errors import first_line
from launch.parallel import device_shares, gpus_of_a_job
from launch.schemas import SCHEMAS, schema
from llm.core.spec import RefusedError, Spec, spec_from_json, spec_target

S = TypeVar("S", bound=Spec)


def register() -> None:
    """Tell Hydra the schemas and OmegaConf our resolvers (once per process is enough)."""
    # Our options of hydra/launcher bear the names of the plugins' own, to which they add; Hydra 1.3
    # does as it did before, but says that later versions will not.
    warnings.filterwarnings(
        "ignore", r"\s*'hydra/.*is validated against ConfigStore schema with the same name"
    )
    store = ConfigStore.instance()
    for name, spec in SCHEMAS.items():  # in no group, or the tab key would offer it
        store.store(name=f"{name}_schema", node=schema(spec))
    OmegaConf.register_new_resolver(
        "run_id", lambda: secrets.token_hex(3), use_cache=True, replace=True
    )
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("point_folder", point_folder, replace=True)
    OmegaConf.register_new_resolver("device_shares", device_shares, replace=True)
    OmegaConf.register_new_resolver("gpus_of_a_job", gpus_of_a_job, replace=True)
    OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)
    OmegaConf.register_new_resolver("explained_keys", explained_keys, replace=True)
    OmegaConf.register_new_resolver("without_mixture", without_mixture, replace=True)


def without_mixture(value: Any, otherwise: Any, *, _parent_: Any) -> Any:
    """A trainer's own data, unless a mixture is named instead of it."""
    return otherwise if _parent_.mixture else value


def spec_from_config(cfg: DictConfig, expected: type[S]) -> S:
    """The composed configuration as a checked spec.

    Raises:
        RefusedError: with one line that names the key, its value and what was expected.
    """
    ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    missing = [str(key) for key in ours if OmegaConf.is_missing(ours, key)]
    if missing:
        raise RefusedError(f"{missing[0]}: a value is needed and none was given")
    try:
        data = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RefusedError(f"{error.full_key}: {first_line(error)}") from None
    spec = spec_from_json(data)
    if not isinstance(spec, expected):
        raise RefusedError(f"the root of the configuration must be a {spec_target(expected)}")
    return spec


register()
