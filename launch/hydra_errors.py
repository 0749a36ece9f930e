"""What Hydra and OmegaConf object to, in one line."""

from __future__ import annotations

import dataclasses
import re
import sys

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException


def explained(error: Exception) -> str:
    """Hydra's error in one line, without its advice to add keys with a plus."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option. {group} has {', '.join(error.options)}"
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        has = ""
        if dataclasses.is_dataclass(cause.object_type):
            keys = (f.name for f in dataclasses.fields(cause.object_type))
            has = f". {cause.object_type_str} has {', '.join(k for k in keys if k != '_target_')}"
        return f"{cause.full_key}: no such key{has}"
    if lacking := re.match(r"Could not override '([\w/]+)'", str(error)):
        name = lacking[1]
        return f"{name}: no group of this program. It may have keys {name}.KEY, see --help"
    if isinstance(error, OverrideParseException):
        lines = [line for line in error.message.splitlines() if not line.startswith("See ")]
        return f"{error.override}: expected key=value ({lines[-1]})"
    if isinstance(cause, OmegaConfBaseException):
        word = first_line(error).removeprefix("Error merging override ")
        key, _, value = word.partition("=")
        wants_list = "is not a ListConfig" in str(cause)
        problem = f"expected a list, as in {key}=[{value}]" if wants_list else first_line(cause)
        return f"{word}: {problem}"
    return f"{' '.join(sys.argv[1:])}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says, without where and how."""
    return (str(error).splitlines() or [type(error).__name__])[0]
