"""Which parameters a run changes: all, or the adapters if there are any, less what is frozen.

Gradients, optimizer state and averages exist for these only.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from llm.core.spec import RefusedError
from llm.models.binding import abstract
from llm.models.lora import is_adapter
from llm.models.parameter import named, nested, parameters
from llm.models.specs import ModelSpec


@lru_cache(maxsize=64)
def trained_names(model: ModelSpec, freeze: tuple[str, ...] = ()) -> frozenset[str]:
    """Dotted names of the parameters that are trained.

    Args:
        model: what the model is made of.
        freeze: patterns over names (`*.bias`) or over what begins them (`blocks.0`).

    Raises:
        RefusedError: a pattern freezes nothing, or nothing is left to train.
    """
    everything = _shapes(model)
    names = {name for name in everything if is_adapter(name) or not model.lora.rank}
    frozen: set[str] = set()
    for pattern in freeze:
        matches = {name for name in names if _fits(name, pattern)}
        if not matches:
            why = "matches no parameter"
            if any(_fits(name, pattern) for name in everything):
                why = "matches only what is frozen anyway, beside the adapters of model.lora"
            raise RefusedError(
                f"trainer.freeze={_shown(freeze)}: {pattern} {why}; the parameters are "
                f"{', '.join(_kinds(names))}"
            )
        frozen |= matches
    if frozen == names:
        raise RefusedError(f"trainer.freeze={_shown(freeze)}: leaves nothing to train")
    return frozenset(names - frozen)


def split(model: ModelSpec, freeze: Sequence[str], params: Any) -> tuple[Any, Any]:
    """The trained part and the rest of a nested dict, as two nested dicts."""
    trained, leaves = trained_names(model, tuple(freeze)), named(params)
    return (
        nested({name: leaf for name, leaf in leaves.items() if name in trained}),
        nested({name: leaf for name, leaf in leaves.items() if name not in trained}),
    )


def joined(params: Any, part: Any) -> Any:
    """`params` with the leaves of `part`, which may be some or all, beside or for its own."""
    ours, theirs = named(params), named(part)
    return part if ours.keys() <= theirs.keys() else nested({**ours, **theirs})


def n_frozen_matmul(model: ModelSpec, freeze: Sequence[str]) -> int:
    """Frozen ones among the weights that `ModelSpec.n_matmul_params` counts."""
    trained, shapes = trained_names(model, tuple(freeze)), _shapes(model)
    head = "head" if "head" in shapes else "embedding"
    return sum(
        leaf.size
        for name, leaf in shapes.items()
        if name not in trained and (name == head or (name.startswith("blocks.") and leaf.ndim == 2))
    )


def _shapes(model: ModelSpec) -> dict[str, Any]:
    return named(parameters(abstract(model)))


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _shown(patterns: Sequence[str]) -> str:
    return f"[{','.join(patterns)}]"


def _kinds(names: set[str]) -> list[str]:
    """The names with one star for the number of the block."""
    return sorted({".".join("*" if p.isdecimal() else p for p in n.split(".")) for n in names})
