"""What the model writes while it is trained: samples, and answers to held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from llm.core.machine import Machine
from llm.data.chat_tokens import encode_chat, template_of
from llm.data.conversations import ChatSettings
from llm.data.questions import Question
from llm.data.tokenizer import Tokenizer
from llm.generate.engine import Engine
from llm.generate.prompt_checks import check_prompts
from llm.generate.specs import Sampling
from llm.models.specs import ModelSpec
from llm.report.samples import Sample
from llm.train.experiment import SamplesSpec

Sampler = Callable[[Any, int], tuple[list[Sample], dict[str, float]]]


def sampler(
    spec: SamplesSpec,
    *,
    model: ModelSpec,
    tokenizer: Tokenizer,
    chat: ChatSettings | None,
    questions: Sequence[Question],
    stop_ids: Sequence[int],
    machine: Machine,
    seed: int,
) -> Sampler | None:
    """A function that draws the samples of some weights at some step, and metrics of them.

    None if there is nothing to go on from.

    Args:
        spec: what to sample.
        model: what the weights belong to.
        tokenizer: of the model.
        chat: a prompt is a user's message in a conversation; None: a text to go on with.
        questions: held-out questions to answer besides. `eval/exact_match` is the share of
            answers that are the data's own.
        stop_ids: tokens that end an answer.
        machine: where the weights lie, and in which types it computes.
        seed: together with the step decides what is drawn.

    Raises:
        RefusedError: a prompt is too long; better now than in the middle of the run.
    """
    prompts = [_prompt(text, tokenizer, chat, stop_ids) for text in spec.prompts]
    if prompts:
        check_prompts(model, prompts, spec.max_new_tokens)
    # A question that leaves no room for an answer is not asked.
    room = model.max_seq_len - spec.max_new_tokens
    asked = [q for q in questions if len(q.prompt) <= room]
    if not prompts and not asked:
        return None
    shown = [
        *spec.prompts,
        *(tokenizer.decode(question.prompt, skip_specials=False) for question in asked),
    ]
    references = [
        *(None for _ in spec.prompts),
        *(tokenizer.decode(question.answer) for question in asked),
    ]
    sampling = Sampling(
        max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, top_p=spec.top_p
    )

    def sample(params: Any, step: int) -> tuple[list[Sample], dict[str, float]]:
        engine = Engine(
            model,
            params,
            compute_dtype=machine.spec.compute_dtype,
            cache_dtype=machine.spec.cache_dtype,
            mesh=machine.mesh,
        )
        answers = engine.generate(
            [*prompts, *(question.prompt for question in asked)],
            sampling,
            key=jax.random.fold_in(jax.random.key(seed), step),
            stop_ids=stop_ids,
        )
        texts = [tokenizer.decode(answer.ids) for (answer,) in answers]
        samples = [Sample(*row) for row in zip(shown, texts, references, strict=True)]
        right = [s.completion.strip() == s.reference.strip() for s in samples if s.reference]
        return samples, {"eval/exact_match": sum(right) / len(right)} if right else {}

    return sample


def _prompt(
    text: str, tokenizer: Tokenizer, chat: ChatSettings | None, stop_ids: Sequence[int]
) -> list[int]:
    if chat is None:
        return [tokenizer.start_id, *tokenizer.encode(text)]
    template = template_of(tokenizer, chat.template, stop_ids[0])
    return encode_chat(tokenizer, template, [{"role": "user", "content": text}])
