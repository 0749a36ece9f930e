"""Rows for tokens that a pretrained model does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

_TABLES = ("embedding", "head")  # parameters with a row for each token


def read_with_new_rows(
    read: Callable[[Any], Any], template: Any, vocab: int, new_ids: tuple[int, ...]
) -> Any:
    """Weights of a model with a smaller vocabulary, grown to the shapes of `template`.

    The rows of new tokens are the average of all others: a new token then is no likelier than a
    usual one, and changes what the model predicts least (Hewitt 2021).

    Args:
        read: `Pretrained.weights`.
        template: nested dict of `jax.ShapeDtypeStruct` with the larger vocabulary.
        vocab: rows that are stored.
        new_ids: tokens whose rows are new; some may be stored, as rows that no token used.
    """
    tables = [name for name in _TABLES if name in template]
    stored = {
        **template,
        **{name: _with_rows(template[name], vocab) for name in tables},
    }
    weights = read(stored)
    if not new_ids and all(stored[name].shape == template[name].shape for name in tables):
        return weights

    def grow(table_VD: Array, rows: int) -> Array:
        ids = jnp.array(new_ids, jnp.int32)
        table_VD = jnp.pad(table_VD, ((0, rows - len(table_VD)), (0, 0)))
        is_known_V = jnp.ones(rows, bool).at[vocab:].set(False).at[ids].set(False)
        known_VD = jnp.where(is_known_V[:, None], table_VD.astype(jnp.float32), 0)
        mean_D = known_VD.sum(0) / is_known_V.sum()
        return jnp.where(is_known_V[:, None], table_VD, mean_D.astype(table_VD.dtype))

    grown = {
        name: jax.jit(grow, static_argnums=1, out_shardings=template[name].sharding)(
            weights[name], template[name].shape[0]
        )
        for name in tables
    }
    return {**weights, **grown}


def _with_rows(table: jax.ShapeDtypeStruct, rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, *table.shape[1:]), table.dtype, sharding=table.sharding)
