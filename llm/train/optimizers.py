"""Which parameters an optimizer treats how."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
import optax.contrib

from llm.core.spec import RefusedError


def is_matrix(params: Any) -> Any:
    """True for parameters with two or more axes: those that weight decay acts on."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def muon_or_adamw(params: Any) -> Any:
    """Which of the two optimizers takes each parameter.

    Matrices inside blocks go to Muon. Embeddings and the head are tables with a row per token or
    position, for which an orthogonal update makes no sense.
    """

    def choose(path: tuple[Any, ...], p: jax.Array) -> str:
        inside_block = path[0] == jax.tree_util.DictKey("blocks")
        return "muon" if inside_block and p.ndim == 2 else "adamw"

    return jax.tree_util.tree_map_with_path(choose, params)


def optax_by_name(
    name: str, learning_rate: optax.Schedule, options: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Call the optimizer `name` of optax or optax.contrib.

    Raises:
        RefusedError: see `find_optax`.
    """
    function = find_optax(name, options)
    keywords = dict(options)
    for mask in ("mask", "weight_decay_mask"):
        if mask in _parameters(function) and mask not in keywords:
            keywords[mask] = is_matrix
    return function(learning_rate, **keywords)


def find_optax(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The optimizer `name` of optax or optax.contrib, once it is known to take these options.

    Raises:
        RefusedError: no such optimizer, or it does not take these options.
    """
    function = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    if not inspect.isfunction(function) or "learning_rate" not in _parameters(function):
        raise RefusedError(
            f"trainer.optimizer.optimizer={name}: not an optimizer of optax that takes a "
            "learning_rate; try lion, adafactor, sgd, lamb, adan, ..."
        )
    if isinstance(options.get("mask"), str):
        raise RefusedError("trainer.optimizer.options.mask: cannot be given as text")
    unknown = sorted(set(options) - set(_parameters(function)))
    if unknown:
        known = ", ".join(p for p in _parameters(function) if p != "learning_rate")
        raise RefusedError(
            f"trainer.optimizer.options.{unknown[0]}: optax.{name} has no such option. "
            f"It has {known}"
        )
    return function


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters
