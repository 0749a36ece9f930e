"""Descriptions of tensors in a pickle that torch.save wrote, without executing anything.

A pickle is a program for a small stack machine, and Python's own machine lets it call any function
and reserve any memory. This one knows the instructions that a dict of tensors needs, and calls
nothing: the three functions that such a pickle names are recognised by their names.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from llm.core.spec import RefusedError

_STORAGES = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_KNOWN = {_TENSOR, _PARAMETER, _ORDERED_DICT, *_STORAGES}
_UNSAFE = "which no tensors need; it may be meant to run foreign code, and nothing of it was run"
_LARGEST = 2**48


@dataclass(frozen=True)
class Storage:
    """A block of numbers beside the pickle."""

    dtype: np.dtype[Any]
    key: str
    length: int


@dataclass(frozen=True)
class Described:
    """A tensor: contiguous values of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]


def described_tensors(pickle: bytes) -> dict[str, Described]:
    """The tensors of a pickled state dict, by name.

    Raises:
        RefusedError: the pickle is damaged, or does more than describe tensors.
    """
    try:
        state = _Machine().run(pickle)
        for name, tensor in _expect(state, dict).items():
            _expect(_expect(name, str) and tensor, Described)
    except RefusedError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedError(
            f"expected a pickled dict of tensors: {str(error)[:200] or type(error).__name__}"
        ) from error
    if not state:
        raise RefusedError("it holds no tensors")
    tensors: dict[str, Described] = state
    return tensors


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names; only compared, never looked up."""

    name: str


class _Machine:
    """Runs one pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        for instruction, argument, _ in pickletools.genops(io.BytesIO(pickle)):
            name = instruction.name
            if name == "STOP":
                return self._stack.pop()
            if name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            elif name in _CONSTANTS:
                self._stack.append(argument)
            else:
                raise RefusedError(f"its pickle has the instruction {name}, {_UNSAFE}")
        raise ValueError("it does not end")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def pop_marked(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def pop_last(self, count: int) -> list[Any]:
        return [self._stack.pop() for _ in range(count)][::-1]

    def extend(self, items: list[Any]) -> None:
        _expect(self._stack[-1], list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = _expect(self._stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_expect(key, str)] = value

    def remember(self, place: Any) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def recall(self, place: Any) -> None:
        self._stack.append(self._memo[place])

    def ignore_attributes(self) -> None:
        """Of an OrderedDict, such as the versions of modules."""
        self._stack.pop()
        _expect(self._stack[-1], dict)

    def apply(self) -> None:
        arguments, function = _expect(self._stack.pop(), tuple), _expect(self._stack.pop(), _Name)
        if function.name == _ORDERED_DICT and arguments == ():
            self._stack.append({})
        elif function.name == _PARAMETER:
            self._stack.append(_expect(arguments[0], Described))
        elif function.name == _TENSOR:
            self._stack.append(_tensor(*arguments[:4]))
        else:
            raise RefusedError(f"its pickle calls {function.name.replace(' ', '.')}, {_UNSAFE}")


_CONSTANTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda _, __: None,
    "FRAME": lambda _, __: None,
    "MARK": lambda m, _: m.mark(),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_marked())),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop_last(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop_last(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop_last(3))),
    "APPEND": lambda m, _: m.extend(m.pop_last(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_marked()),
    "SETITEM": lambda m, _: m.set_items(m.pop_last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_marked()),
    "BINPUT": lambda m, place: m.remember(place),
    "LONG_BINPUT": lambda m, place: m.remember(place),
    "MEMOIZE": lambda m, _: m.remember(None),
    "BINGET": lambda m, place: m.recall(place),
    "LONG_BINGET": lambda m, place: m.recall(place),
    "GLOBAL": lambda m, name: m.push(_known(name)),
    "STACK_GLOBAL": lambda m, _: m.push(_known(" ".join(m.pop_last(2)))),
    "BINPERSID": lambda m, _: m.push(_storage(m.pop())),
    "REDUCE": lambda m, _: m.apply(),
    "BUILD": lambda m, _: m.ignore_attributes(),
}


def _known(name: str) -> _Name:
    if name not in _KNOWN:
        raise RefusedError(f"its pickle names {name.replace(' ', '.')[:80]}, {_UNSAFE}")
    return _Name(name)


def _storage(identity: Any) -> Storage:
    kind, named, key, _, length = _expect(identity, tuple)
    name = _expect(named, _Name).name
    if name not in _STORAGES:
        expected = ", ".join(known.partition(" ")[2] for known in _STORAGES)
        raise RefusedError(f"it has a {name.partition(' ')[2]}: expected one of {expected}")
    if _expect(kind, str) != "storage":
        raise ValueError("a storage that is none")
    return Storage(_STORAGES[name], _expect(key, str), _size(length))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Described:
    sizes = tuple(_size(number) for number in _expect(shape, tuple)[:9])
    steps = tuple(_size(number) for number in _expect(strides, tuple)[:9])
    if len(sizes) != len(steps) or len(sizes) > 8 or 0 in sizes:
        raise ValueError(f"a tensor of shape {sizes} with strides {steps}")
    packed = tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))
    if any(step != dense and n > 1 for step, dense, n in zip(steps, packed, sizes, strict=True)):
        raise RefusedError(
            f"a tensor of shape {sizes} has strides {steps}, expected {packed}; save it contiguous"
        )
    return Described(_expect(storage, Storage), _size(offset), sizes)


def _size(number: Any) -> int:
    if type(number) is not int or not 0 <= number < _LARGEST:
        raise ValueError("a size that is not a whole number, or too large")
    return number


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value
