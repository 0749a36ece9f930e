"""Specs: one frozen dataclass per part, holding its schema, defaults, docs and checks.

A spec is plain data: no arrays, no I/O, hashable, and it goes to JSON and back. The Hydra tree, a
checkpoint and a notebook all describe a part by the same mapping, whose `_target_` names the spec
class:

    {"_target_": "llm.models.specs.GPTSpec", "n_layers": 6, ...}

`Spec.to_json` writes that mapping and `spec_from_json` reads it. Every field is declared with
`knob`, which keeps its documentation and its bounds next to its default.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

_TRUSTED_PREFIX = "llm."


class RefusedError(ValueError):
    """The user asked for something that cannot work; the message says what to change.

    Raised before anything is created. The entry points turn it into one line and exit status 2.
    """


class RunFailedError(RuntimeError):
    """A run cannot go on, and the message says all there is to say: where it was raised does not.

    The entry points turn it into one line and exit status 1.
    """


class frozendict(dict[str, Any]):  # noqa: N801  (reads as the builtin it stands in for)
    """A dict that a frozen spec can hold: hashable by content, never changed after creation."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))


def knob(
    default: Any = MISSING,
    doc: str = "",
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Declare a field of a spec: its default, what it means, and which values it takes.

    Args:
        default: the default value; left out, the field must be given.
        doc: one line of documentation with units.
        gt, ge, lt, le: bounds on a number (greater than, greater or equal, ...).
        choices: the words that a string field may be.
    """
    checks = {"gt": gt, "ge": ge, "lt": lt, "le": le, "choices": choices}
    metadata = {"doc": doc, **{k: v for k, v in checks.items() if v is not None}}
    if isinstance(default, (list, dict)):
        copied = default
        return dataclasses.field(default_factory=lambda: type(copied)(copied), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all specs. Subclasses add fields (see `knob`) and, if needed, `check`."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, hints[field.name]):
                expected = _in_words(hints[field.name])
                raise RefusedError(f"{field.name}={value}: expected {expected}")
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            elif isinstance(value, dict):
                object.__setattr__(self, field.name, frozendict(value))
            _check_bounds(field, value)
        self.check()

    def check(self) -> None:
        """Refuse combinations of values that cannot work (raises `RefusedError`)."""

    def replace(self, **changes: Any) -> typing.Self:
        """A copy with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON data, `_target_` included."""
        return _jsonable(self)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of its field, as far as JSON and YAML tell types apart."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(item, args[0]) for item in value)
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, origin or hint)


def _in_words(hint: Any) -> str:
    """A field's type for people who do not read type hints."""
    if isinstance(hint, types.UnionType):
        return " or ".join(_in_words(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return f"a list, each item {_in_words(typing.get_args(hint)[0])}"
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
    }
    return words.get(hint) or str(getattr(hint, "__name__", hint))


def _check_bounds(field: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a value outside the bounds that its knob declares."""
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{field.name}={value}: expected a finite number")
    bounds = field.metadata
    tests = {
        "gt": ("greater than", lambda limit: value > limit),
        "ge": ("at least", lambda limit: value >= limit),
        "lt": ("less than", lambda limit: value < limit),
        "le": ("at most", lambda limit: value <= limit),
    }
    for key, (words, holds) in tests.items():
        if key in bounds and not holds(bounds[key]):
            raise RefusedError(f"{field.name}={value}: expected a number {words} {bounds[key]}")
    if "choices" in bounds and value not in bounds["choices"]:
        choices = ", ".join(bounds["choices"])
        raise RefusedError(f"{field.name}={value}: expected one of {choices}")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Spec):
        fields = {f.name: _jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"_target_": spec_target(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def spec_from_json(data: Any, path: str = "") -> Any:
    """Build the spec (and the specs inside it) that a `_target_` mapping describes.

    Args:
        data: JSON-like data; mappings with `_target_` become specs, the rest stays as it is.
        path: dotted name of `data` in the whole configuration, for messages.

    Raises:
        RefusedError: unknown target or key, missing key, or a value the spec refuses.
    """
    if isinstance(data, (list, tuple)):
        return [spec_from_json(item, f"{path}[{i}]") for i, item in enumerate(data)]
    if not isinstance(data, Mapping):
        return data
    if "_target_" not in data:
        return {k: spec_from_json(v, _join(path, k)) for k, v in data.items()}
    cls = spec_class(str(data["_target_"]), path)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields) - {"_target_"})
    if unknown:
        raise RefusedError(
            f"{_join(path, unknown[0])}: no such key. {cls.__name__} has {', '.join(fields)}"
        )
    missing = [name for name, f in fields.items() if name not in data and _required(f)]
    if missing:
        raise RefusedError(f"{_join(path, missing[0])}: a value is needed and none was given")
    values = {k: spec_from_json(v, _join(path, k)) for k, v in data.items() if k != "_target_"}
    try:
        return cls(**values)
    except RefusedError as error:
        raise RefusedError(_join(path, str(error))) from None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def spec_target(cls: type[Spec]) -> str:
    """The `_target_` that names a spec class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def spec_class(target: str, path: str = "") -> type[Spec]:
    """The spec class that a `_target_` names; nothing outside this package is ever imported.

    Raises:
        RefusedError: it names something else; `path` says where it stood.
    """
    module, _, name = target.rpartition(".")
    if target.startswith(_TRUSTED_PREFIX):
        try:
            cls = getattr(importlib.import_module(module), name, None)
        except ImportError:
            cls = None
        if isinstance(cls, type) and issubclass(cls, Spec):
            return cls
    raise RefusedError(f"{_join(path, '_target_')}={target}: not a spec of this package")
