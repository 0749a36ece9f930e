"""What a model cannot continue is refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llm.core.spec import RefusedError
from llm.models.specs import ModelSpec


def check_prompts(spec: ModelSpec, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse prompts that cannot be continued by so many tokens.

    Raises:
        RefusedError: an empty prompt, an id that is no token, or more than the model can see.
    """
    if len(prompts) == 0 or any(len(prompt) == 0 for prompt in prompts):
        raise RefusedError("every prompt needs at least one token")
    check_ids(spec, (index for prompt in prompts for index in prompt))
    longest = max(map(len, prompts))
    if longest + max_new_tokens > spec.max_seq_len:
        raise RefusedError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit into the "
            f"{spec.max_seq_len} that the model sees"
        )


def check_ids(spec: ModelSpec, ids: Iterable[int]) -> None:
    """Refuse ids that are no tokens: JAX would silently take another row of the embedding.

    Raises:
        RefusedError: with the first of them.
    """
    for index in ids:
        if not 0 <= index < spec.vocab:
            raise RefusedError(f"token {index}: the model has tokens 0 to {spec.vocab - 1}")
