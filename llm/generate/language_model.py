"""A trained model with its tokenizer: what `llm.load` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llm.core.hardware import DTYPES
from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer
from llm.generate.engine import Engine
from llm.generate.prompt_checks import check_ids
from llm.generate.specs import Sampling
from llm.generate.stop_strings import Cut
from llm.hub.export import export
from llm.hub.pretrained import Pretrained
from llm.hub.sources import open_source
from llm.models.binding import bind
from llm.models.parameter import parameters
from llm.models.specs import ModelSpec


@dataclass(frozen=True)
class LanguageModel:
    """A pretrained model with its weights in memory."""

    pretrained: Pretrained
    params: Any
    """Nested dict of arrays, see `llm.models.parameter.parameters`."""
    compute_dtype: str = "float32"
    """Of the matrix products in generation."""
    cache_dtype: str | None = None
    """Of the keys and values kept there; None: the same."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is made of."""
        return self.pretrained.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        return self.pretrained.tokenizer

    @property
    def chat_template(self) -> str | None:
        """Jinja source, if the model was trained on conversations."""
        return self.pretrained.chat_template

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end what the model says."""
        return self.pretrained.end_ids

    @cached_property
    def model(self) -> Any:
        """The Flax module with these weights."""
        return bind(self.spec, self.params)

    def logits(self, ids_BT: Int[np.ndarray, "B T"] | Sequence[Sequence[int]]) -> np.ndarray:
        """fp32 scores over the vocabulary for the token after each position, [B, T, V].

        Raises:
            RefusedError: not as many ids in each row, not integers, no tokens, or more than the
                model can see.
        """
        try:
            ids = np.asarray(ids_BT)
        except ValueError:
            ids = np.empty(0)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise RefusedError("logits(ids): expected integers [batch, time], all rows as long")
        check_ids(self.spec, ids.ravel().tolist())
        return np.asarray(_logits(self.spec, self.params, jnp.asarray(ids, jnp.int32)))

    @cached_property
    def engine(self) -> Engine:
        """For generating: answers with their log-probabilities, and sessions."""
        return Engine(
            self.spec,
            self.params,
            compute_dtype=self.compute_dtype,
            cache_dtype=self.cache_dtype,
        )

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]] | Int[np.ndarray, "B T"],
        *,
        n: int | None = None,
        stop: bool | Sequence[str] = True,
        seed: int = 0,
        batch_size: int = 32,
        sampling: Sampling | None = None,
        **settings: Any,
    ) -> Any:
        """Continue prompts: text in, text out; or ids in, ids out.

        Args:
            prompts: texts, which begin a document, or token ids, taken as they are.
            n: samples per prompt; a list of lists comes back then.
            stop: end at the model's stop tokens; False runs on to `max_new_tokens`. Strings end an
                answer besides: it is cut before the first of them.
            seed: all randomness follows from it.
            batch_size: rows that are decoded at a time.
            sampling: how tokens are drawn.
            settings: fields of `Sampling` to change, such as max_new_tokens=64, temperature=0.0.

        Raises:
            RefusedError: more tokens than the model can see, ids that are no tokens, a setting out
                of bounds, or a lone text where a list of texts is expected.
        """
        if isinstance(prompts, str):
            raise RefusedError(f"generate([{prompts[:20]!r}]) takes a list of prompts, also of one")
        given: list[Any] = list(prompts)
        if not all(map(_is_prompt, given)):
            raise RefusedError("generate(prompts): expected a list of texts, or of lists of ids")
        if n is not None and n < 1:
            raise RefusedError(f"n={n}: expected at least 1")
        strings = [] if isinstance(stop, bool) else list(stop)
        if isinstance(stop, str) or not all(isinstance(s, str) and s for s in strings):
            raise RefusedError(f"stop={stop}: expected true, false or a list of texts, none empty")
        cut = Cut(self.tokenizer, strings)
        answers = self.engine.generate(
            [self.begin(p) if isinstance(p, str) else np.asarray(p).tolist() for p in given],
            (sampling or Sampling()).replace(**settings),
            key=jax.random.key(seed),
            stop_ids=() if stop is False else self.stop_ids,
            n=n or 1,
            batch_size=batch_size,
            is_over=cut.is_over if strings else None,
        )
        form = cut.text if given and isinstance(given[0], str) else cut.ids
        results = [[form(answer.ids) for answer in row] for row in answers]
        return results if n else [row[0] for row in results]

    def begin(self, text: str) -> list[int]:
        """Ids of a text that begins a document."""
        return [self.tokenizer.start_id, *self.tokenizer.encode(text)]


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return True
    try:
        ids = np.asarray(prompt)
    except ValueError:  # lists within, of several lengths
        return False
    return ids.ndim == 1 and (ids.size == 0 or ids.dtype.kind in "iu")


def load(
    source: str | Path | Sequence[str] | Pretrained,
    *,
    dtype: str = "float32",
    compute_dtype: str | None = None,
    cache_dtype: str | None = None,
) -> LanguageModel:
    """The model of a checkpoint, on the first device.

    Args:
        source: see `llm.hub.sources`; of several, the first that can be had. Or what was opened.
        dtype: type in which the weights are kept.
        compute_dtype: type of the matrix products in generation; `dtype` if left out.
        cache_dtype: type of the keys and values kept there; that of the products if left out.

    Raises:
        RefusedError: there is no such checkpoint, or it does not fit its own spec.
    """
    for name in filter(None, (dtype, compute_dtype, cache_dtype)):
        if name not in DTYPES:
            raise RefusedError(f"dtype={name}: expected {' or '.join(DTYPES)}")
    if isinstance(source, Path):
        source = str(source)
    pretrained = source if isinstance(source, Pretrained) else open_source(source)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: parameters(pretrained.spec.build(jax.random.key(0))))
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=here), shapes
    )
    weights = pretrained.weights(template)
    return LanguageModel(pretrained, weights, compute_dtype or dtype, cache_dtype)


def save_hf(lm: LanguageModel, folder: str | Path) -> None:
    """Write a Hugging Face folder, with a model card and a certificate; see `llm.hub.export`.

    Raises:
        RefusedError: the folder exists and is not empty, or the model has no such form.
    """
    export(lm.pretrained, lm.params, Path(folder).expanduser())


def _logits_of(spec: ModelSpec, params: Any, ids_BT: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    model = bind(spec, params)
    logits: Array = model.logits(model(ids_BT)[0])
    return logits


_logits = jax.jit(_logits_of, static_argnums=0)
