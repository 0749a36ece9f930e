"""What --help shows: the options of each group, and every key with its meaning.

Two OmegaConf resolvers, used by the help template in conf/main.yaml. Hydra's own $APP_CONFIG_GROUPS
leaves out those of hydra/, and its $CONFIG knows values but not what they mean.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Container

from llm.core.spec import spec_class

CONF = Path(__file__).parent.parent / "conf"
_VALUE_WIDTH = 40


def option_groups() -> str:
    """One line per group of conf/: its name and options."""
    groups: dict[str, list[str]] = {}
    for file in sorted(CONF.glob("*/**/*.yaml")):
        groups.setdefault(file.parent.relative_to(CONF).as_posix(), []).append(file.stem)
    return "\n".join(f"{group}={'|'.join(options)}" for group, options in groups.items())


def explained_keys(*, _root_: DictConfig) -> str:
    """One line per key of the composed configuration: its value and what it means."""
    lines = _explain(_root_, "")
    # The text becomes part of a string.Template, to which a lone $ means something.
    return "\n".join(lines).replace("$", "$$")


def _explain(node: Container, path: str) -> list[str]:
    plain: Any = OmegaConf.to_container(node, resolve=False)
    if "_target_" not in plain:
        return []
    lines = []
    for field in dataclasses.fields(spec_class(plain["_target_"])):
        key, value = f"{path}{field.name}", plain[field.name]
        if isinstance(value, dict) and "_target_" in value:
            lines += _explain(node[field.name], f"{key}.")
        else:
            shown = json.dumps(value) if value is None or isinstance(value, bool) else value
            choices = field.metadata.get("choices")
            words = f" ({', '.join(choices)})" if choices else ""
            lines.append(f"{f'{key}={shown}':<{_VALUE_WIDTH}}  {field.metadata['doc']}{words}")
    return lines
