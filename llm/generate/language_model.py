"""A trained model with its tokenizer: what `llm.load` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llm.core.spec import RefusedError, spec_from_json
from llm.data.tokenizer import Tokenizer
from llm.generate.decode import check_ids, generate
from llm.hub.checkpoints import read_checkpoint_meta, read_checkpoint_weights
from llm.hub.sources import find_checkpoint
from llm.models.binding import bind
from llm.models.parameter import parameters
from llm.models.specs import ModelSpec


@dataclass(frozen=True)
class LanguageModel:
    """Spec, weights and tokenizer that belong together."""

    spec: ModelSpec
    params: Any
    tokenizer: Tokenizer

    @cached_property
    def model(self) -> Any:
        """The Flax module with these weights."""
        return bind(self.spec, self.params)

    def logits(self, ids_BT: Int[np.ndarray, "B T"] | Sequence[Sequence[int]]) -> np.ndarray:
        """fp32 scores over the vocabulary for the token after each position, [B, T, V]."""
        ids = np.asarray(ids_BT, dtype=np.int32)
        check_ids(self.spec, ids.ravel().tolist())
        return np.asarray(_logits(self.spec, self.params, jnp.asarray(ids)))

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: bool = True,
    ) -> Any:
        """Continue prompts: text in, text out; or ids in, ids out.

        Args:
            prompts: texts, which begin a document, or token ids, taken as they are.
            max_new_tokens: length of the longest continuation.
            temperature: 0 takes the likeliest token.
            top_p: sample from the likeliest tokens that together hold this probability.
            seed: all randomness follows from it.
            stop: end at the token between documents; False runs on to `max_new_tokens`.

        Raises:
            RefusedError: more tokens than the model can see, ids that are no tokens, or a lone
                text where a list of texts is expected.
        """
        if isinstance(prompts, str):
            raise RefusedError(f"generate([{prompts[:20]!r}]) takes a list of prompts, also of one")
        tokenizer = self.tokenizer
        ids = [
            [tokenizer.start_id, *tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]
        new = generate(
            self.spec,
            self.params,
            ids,
            key=jax.random.key(seed),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop_ids=[tokenizer.separator_id] if stop else [],
        )
        texts = bool(prompts) and isinstance(prompts[0], str)
        return [tokenizer.decode(row) for row in new] if texts else new


def load(source: str) -> LanguageModel:
    """The model of a checkpoint.

    Args:
        source: a run folder or one checkpoint in it, `last`, or `last:TRAINER`.

    Raises:
        RefusedError: there is no such checkpoint, or it does not fit its own spec.
    """
    folder = find_checkpoint(source)
    meta = read_checkpoint_meta(folder)
    spec: ModelSpec = spec_from_json(meta["model"])
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: parameters(spec.build(jax.random.key(0))))
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    params = read_checkpoint_weights(folder, template)
    return LanguageModel(spec, params, Tokenizer.from_json(meta["tokenizer"]))


def _logits_of(spec: ModelSpec, params: Any, ids_BT: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    model = bind(spec, params)
    logits: Array = model.logits(model(ids_BT)[0])
    return logits


_logits = jax.jit(_logits_of, static_argnums=0)
