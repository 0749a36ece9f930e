"""Rotary positions in config.json: `rope_theta` and `rope_scaling`, or newer, `rope_parameters`.

transformers 5 writes the new key only, which 4 does not know and reads as a base of 10,000. Both
are read, and both are written, equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm.core.spec import RefusedError
from llm.models.specs import LlamaSpec, RopeScalingSpec

_DEFAULT_THETA = 10_000.0
_LARGEST = 1e30
# Our fields of RopeScalingSpec, and what they are called in the dict.
_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}
_USED = {"default": (), "linear": ("factor",), "llama3": tuple(_FIELDS)}
_IGNORED = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
_LONGEST = "original_max_position_embeddings"


def read_rope(config: Mapping[str, Any]) -> tuple[float, RopeScalingSpec]:
    """Base of the wavelengths, and how they are stretched.

    Raises:
        RefusedError: a kind of scaling that is not known here, a missing or unknown key, or old
            and new keys that contradict each other.
    """
    old_theta = config.get("rope_theta")
    found: dict[str, tuple[float, RopeScalingSpec]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key):
            found[key] = _read_dict(key, config[key], old_theta)
    if not found:
        return _theta("rope_theta", old_theta), RopeScalingSpec()
    if len(set(found.values())) > 1:
        raise RefusedError(
            f"config.json: rope_scaling={short(config['rope_scaling'])} with "
            f"rope_theta={short(old_theta)} and rope_parameters={short(config['rope_parameters'])} "
            "contradict each other; remove the wrong one"
        )
    theta, scaling = next(iter(found.values()))
    if old_theta is not None and _theta("rope_theta", old_theta) != theta:
        raise RefusedError(
            f"config.json: rope_theta={old_theta} contradicts {theta} in {next(iter(found))}; "
            "remove the wrong one"
        )
    longest = config.get(_LONGEST)
    if longest is not None and scaling.factor != 1 and longest != scaling.original_max_seq_len:
        raise RefusedError(
            f"config.json: {_LONGEST}={short(longest)} contradicts "
            f"{scaling.original_max_seq_len} in {next(iter(found))}; remove the wrong one"
        )
    return theta, scaling


def rope_keys(spec: LlamaSpec) -> dict[str, Any]:
    """The keys of config.json that say so, in both spellings."""
    scaling = spec.rope_scaling
    if scaling.factor == 1:
        return {
            "rope_theta": spec.rope_theta,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        }
    used = {_FIELDS[ours]: getattr(scaling, ours) for ours in _USED[scaling.type]}
    return {
        "rope_theta": spec.rope_theta,
        "rope_scaling": {"rope_type": scaling.type, **used},
        "rope_parameters": {"rope_type": scaling.type, "rope_theta": spec.rope_theta, **used},
    }


def _read_dict(key: str, values: Any, old_theta: Any) -> tuple[float, RopeScalingSpec]:
    """One of the two dicts."""
    if not isinstance(values, dict):
        raise RefusedError(f"config.json: {key}={short(values)}: expected an object")
    kind = values.get("rope_type", values.get("type", "default"))
    if not isinstance(kind, str) or kind not in _USED:
        expected = ", ".join(_USED)
        raise RefusedError(
            f"config.json: {key}.rope_type={short(kind)}: expected one of {expected}"
        )
    if values.get("type", kind) != kind:
        raise RefusedError(
            f"config.json: {key} has rope_type={kind} and type={short(values['type'])}; remove one"
        )
    part = values.get("partial_rotary_factor")
    if part not in (None, 1):
        raise RefusedError(
            f"config.json: {key}.partial_rotary_factor={short(part)}: only 1 can be represented"
        )
    theirs = {ours: _FIELDS[ours] for ours in _USED[kind]}
    unknown = values.keys() - theirs.values() - _IGNORED - {_LONGEST}
    unknown = {name for name in unknown if values[name] is not None}
    missing = theirs.values() - values.keys()
    for names, problem in [(unknown, "is not known"), (missing, "is missing")]:
        if names:
            name = min(names)
            where = f"{key}.{name}={short(values[name])}" if name in values else f"{key}.{name}"
            raise RefusedError(f"config.json: {where}: {problem} with rope_type={kind}")
    theta = _theta(f"{key}.rope_theta", values.get("rope_theta", old_theta))
    given: dict[str, Any] = {}
    for ours, name in theirs.items():
        value, whole = values[name], ours == "original_max_seq_len"
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < _LARGEST:
            expected = "a whole number above 0" if whole else "a number above 0"
            raise RefusedError(f"config.json: {key}.{name}={short(value)}: expected {expected}")
        given[ours] = value if whole else float(value)
    if kind == "default" or given["factor"] == 1:
        return theta, RopeScalingSpec()
    try:
        return theta, RopeScalingSpec(type=kind, **given)
    except RefusedError as error:
        raise RefusedError(f"config.json: {key}: {error}") from None


def _theta(key: str, value: Any) -> float:
    if value is None:
        return _DEFAULT_THETA
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _LARGEST:
        raise RefusedError(f"config.json: {key}={short(value)}: expected a number above 0")
    return float(value)


def short(value: Any) -> str:
    """A value from a file, for a message that people can read."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
