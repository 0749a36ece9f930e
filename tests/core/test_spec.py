"""Specs: plain data that goes to JSON and back, and refuses what cannot work."""

import dataclasses
import importlib
import inspect
import json
import pkgutil
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

import llm
from llm.core.spec import RefusedError, Spec, knob, spec_from_json
from llm.data.specs import PaddedSpec


def all_specs() -> list[type[Spec]]:
    """Every spec class of the package."""
    for module in pkgutil.walk_packages(llm.__path__, "llm."):
        if module.name.endswith(("specs", "experiment", "hardware")):
            importlib.import_module(module.name)
    found, new = [], [Spec]
    while new:
        children = new.pop().__subclasses__()
        new += children
        found += [child for child in children if child.__module__.startswith("llm.")]
    return found


def example(cls: type[Spec]) -> Spec:
    """A spec with its defaults, and some value where there is none."""
    needed: dict[str, Any] = {
        "name": "x", "steps": 50, "lr": 0.1, "optimizer": "lion", "source": "stdlib", "out": "x",
        "folder": "x", "project": "x", "data": PaddedSpec(),
    }  # fmt: skip
    if cls.__name__ in ("ExperimentSpec", "PlanSpec"):
        from llm.core.hardware import HardwareSpec
        from llm.models.specs import LlamaSpec
        from llm.train.supervised_specs import PretrainSpec

        needed |= {"model": LlamaSpec(), "trainer": PretrainSpec()}
        needed |= {"hardware": HardwareSpec()}
    return cls(**{
        field.name: needed[field.name] for field in dataclasses.fields(cls)
        if field.default is field.default_factory is dataclasses.MISSING
    })  # fmt: skip


@pytest.mark.parametrize(
    "cls", [cls for cls in all_specs() if not inspect.isabstract(cls)], ids=lambda cls: cls.__name__
)
def test_every_spec_goes_to_json_and_back(cls: type[Spec]) -> None:
    spec = example(cls)
    again = spec_from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert type(again) is cls
    assert hash(again) == hash(spec)
    assert {spec: 1}[again] == 1
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(spec, name, getattr(spec, name))


@pytest.mark.parametrize("cls", all_specs(), ids=lambda cls: cls.__name__)
def test_every_field_is_documented(cls: type[Spec]) -> None:
    for field in dataclasses.fields(cls):
        assert field.metadata["doc"], field.name


@dataclass(frozen=True, kw_only=True)
class Wheel(Spec):
    size: int = knob(16, "inches", ge=12, lt=30)


@dataclass(frozen=True, kw_only=True)
class Bicycle(Spec):
    front: Wheel = knob(Wheel(), "wheel")
    spares: list[Wheel] = knob([], "more wheels")
    gears: list[int] = knob([11, 13], "teeth")
    weight: float | None = knob(None, "kg", gt=0)
    colour: str = knob("red", "paint", choices=("red", "blue"))
    bell: bool = knob(True, "is there a bell")
    extras: dict[str, Any] = knob({}, "anything")


def test_lists_become_tuples_and_mappings_are_frozen() -> None:
    bicycle = Bicycle(gears=[1, 2], extras={"b": 1, "a": [1, 2]})
    assert bicycle.gears == (1, 2)
    assert hash(bicycle) == hash(Bicycle(gears=(1, 2), extras={"a": [1, 2], "b": 1}))


def test_a_default_list_is_not_shared() -> None:
    made = [dataclasses.fields(Bicycle)[2].default_factory() for _ in range(2)]
    assert made[0] == [11, 13]
    assert made[0] is not made[1]


def test_replace_checks_anew() -> None:
    assert Bicycle().replace(weight=9.5).weight == 9.5
    with pytest.raises(RefusedError, match="weight=-1: expected a number greater than 0"):
        Bicycle().replace(weight=-1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 0}, "weight=0: expected a number greater than 0"),
        ({"weight": float("nan")}, "weight=nan: expected a finite number"),
        ({"weight": float("inf")}, "weight=inf: expected a finite number"),
        ({"weight": "abc"}, "weight=abc: expected a number or null"),
        ({"weight": True}, "weight=True: expected a number or null"),
        ({"bell": 1}, "bell=1: expected true or false"),
        ({"colour": "pink"}, "colour=pink: expected one of red, blue"),
        ({"colour": None}, "colour=None: expected text"),
        ({"gears": 11}, "gears=11: expected a list, each item a whole number"),
        ({"gears": [1.5]}, r"gears=\[1.5\]: expected a list, each item a whole number"),
        ({"front": 16}, "front=16: expected Wheel"),
    ],
)
def test_refused_with_key_value_and_what_was_expected(values, message: str) -> None:
    with pytest.raises(RefusedError, match=f"^{message}$"):
        Bicycle(**values)


TRAINER = {"_target_": "llm.train.supervised_specs.PretrainSpec"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TRAINER | {"lrr": 1}, r"lrr: no such key\. PretrainSpec has name, steps"),
        (TRAINER | {"steps": 0}, "steps=0: expected a number greater than 0"),
        (
            TRAINER
            | {"optimizer": {"_target_": "llm.train.optimizer_specs.AdamWSpec", "lr": -1.0}},
            r"optimizer\.lr=-1\.0: expected a number greater than 0",
        ),
        (
            TRAINER | {"optimizer": {"_target_": "llm.train.optimizer_specs.OptaxSpec", "lr": 1.0}},
            r"optimizer\.optimizer: a value is needed and none was given",
        ),
        (
            {
                "_target_": "llm.data.specs.PackedSpec",
                "mixture": [{"_target_": "llm.data.specs.SourceSpec", "weight": 0.0}],
            },
            r"mixture\[0\]\.weight=0\.0: expected a number greater than 0",
        ),
    ],
)
def test_refusals_name_the_place(data, message: str) -> None:
    with pytest.raises(RefusedError, match=f"^{message}"):
        spec_from_json(data)
    with pytest.raises(RefusedError, match=f"^a.b.{message}"):
        spec_from_json(data, "a.b")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "antigravity.Spec",
        "llm.core.spec.RefusedError",
        "llm.core.spec.spec_from_json",
        "llm.core.nothing.Spec",
        "llm.models.specs.Nothing",
        "llmx.Spec",
        "llm",
        "",
    ],
)
def test_only_specs_of_this_package_are_ever_made(target: str, monkeypatch) -> None:
    imported = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda n: imported.append(n) or real(n))
    with pytest.raises(RefusedError, match=f"model._target_={target}: not a spec of this package"):
        spec_from_json({"_target_": target}, "model")
    assert all(name.startswith("llm.") for name in imported)
