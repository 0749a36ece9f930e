"""The compiled programs of a run, one per stage: the very functions that the run calls."""

from __future__ import annotations

from typing import Any

import jax

from llm.core.mesh import replicated, rows_sharding, texts_sharding
from llm.core.precision import cast_matrices
from llm.generate.batch import SEGMENT
from llm.generate.prompt_groups import group_rows
from llm.generate.rows import SMALLEST, Plan, bucket, decode, empty_rows, pad_stop_ids, prefill
from llm.generate.sampler import program_of, values_of
from llm.generate.specs import Sampling
from llm.train.parts import Parts


def _arrays(parts: Parts) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = parts.experiment.trainer.batch_arrays(parts.experiment, parts.rows)
    place = rows_sharding(parts.mesh)
    return {name: jax.ShapeDtypeStruct(*shaped, sharding=place) for name, shaped in shapes.items()}


def train_step(parts: Parts, options: dict[str, Any]) -> jax.stages.Traced:
    """One optimizer step."""
    return parts.train_step(options).trace(parts.factory.template, _arrays(parts), parts.peaks)


def score(parts: Parts, options: dict[str, Any]) -> jax.stages.Traced:
    """Log-probabilities under other weights than the trained."""
    from llm.train.grpo.scoring import Scorer

    scorer = jax.jit(Scorer(parts.model, parts.stepper), compiler_options=options)
    return scorer.trace(parts.factory.template.params, _arrays(parts))


def prefill_prompts(parts: Parts, prompts: int, longest: int) -> jax.stages.Traced:
    """A cache of prompts."""
    columns = bucket(longest - 1, SMALLEST, parts.model.max_seq_len)
    rows = group_rows(prompts, columns, parts.platform, parts.hardware.compute_dtype)
    whole = replicated(parts.mesh)
    tokens = jax.ShapeDtypeStruct((rows, columns), "int32", sharding=whole)
    lengths = jax.ShapeDtypeStruct((rows,), "int32", sharding=whole)
    types = parts.hardware.compute_dtype, parts.hardware.cache_dtype
    return prefill.trace(parts.model, _engine_params(parts), tokens, lengths, *types)


def decode_segment(parts: Parts, sampling: Sampling, rows: int, longest: int) -> jax.stages.Traced:
    """Some tokens more for each of `rows` texts."""
    plan = Plan(parts.hardware.compute_dtype, parts.hardware.cache_dtype, program_of(sampling))
    capacity = bucket(longest, SMALLEST, parts.model.max_seq_len)
    texts = jax.eval_shape(
        lambda: empty_rows(parts.model, jax.random.key(0), (rows, capacity), plan)
    )
    place = texts_sharding(parts.mesh, rows)
    texts = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), texts)
    return decode.trace(
        parts.model,
        _engine_params(parts),
        texts,
        values_of(sampling),
        pad_stop_ids([0]),
        0,
        SEGMENT,
        plan,
    )


def _engine_params(parts: Parts) -> Any:
    """The weights as `llm.generate.engine` holds them."""
    params = parts.factory.template.params
    cast = jax.eval_shape(lambda p: cast_matrices(p, parts.hardware.compute_dtype), params)
    return jax.tree.map(
        lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding), cast, params
    )
