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

from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer
from llm.generate.decode import check_ids, generate
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
        return self.pretrained.stop_ids or (self.tokenizer.separator_id,)

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
            stop_ids=self.stop_ids if stop else (),
        )
        texts = bool(prompts) and isinstance(prompts[0], str)
        return [tokenizer.decode(row) for row in new] if texts else new


def load(source: str | Sequence[str], *, dtype: str = "float32") -> LanguageModel:
    """The model of a checkpoint, on the first device.

    Args:
        source: see `llm.hub.sources`; of several, the first that can be had.
        dtype: type in which the weights are kept.

    Raises:
        RefusedError: there is no such checkpoint, or it does not fit its own spec.
    """
    pretrained = open_source(source)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: parameters(pretrained.spec.build(jax.random.key(0))))
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=here), shapes
    )
    return LanguageModel(pretrained, pretrained.weights(template))


def _logits_of(spec: ModelSpec, params: Any, ids_BT: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    model = bind(spec, params)
    logits: Array = model.logits(model(ids_BT)[0])
    return logits


_logits = jax.jit(_logits_of, static_argnums=0)
