"""A model for lm-evaluation-harness (Gao et al. 2021), in place of its Hugging Face backend.

What is scored and what is written follows that backend token by token: how context and continuation
are cut apart, what a text begins with, where a long one is cut, when an answer ends. So the harness
gives an exported model the same figures there and here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import jax
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llm.core.spec import RefusedError
from llm.data.chat_tokens import template_of
from llm.eval.scorer import Query, Scorer, check_finite
from llm.generate.language_model import LanguageModel
from llm.generate.specs import Sampling
from llm.generate.stop_strings import Cut

_DRAWS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_NO_MATTER = ("do_sample", "until", "max_gen_toks", "use_cache")


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """One of our models.

    Args:
        lm: the model.
        scorer: of the model; its context is the longest text that is looked at.
        batch_size: answers that are written at a time.
        max_new_tokens: tokens per answer, where a task says nothing.
        seed: for tasks that draw answers.
    """

    def __init__(
        self,
        lm: LanguageModel,
        scorer: Scorer,
        *,
        batch_size: int = 32,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._lm, self._scorer = lm, scorer
        self._batch_size, self._max_new_tokens, self._seed = batch_size, max_new_tokens, seed

    @property
    def max_length(self) -> int:
        """Tokens the model is given at once."""
        return self._scorer.context

    @property
    def eot_token_id(self) -> int:
        """The token that ends what the model says."""
        return self._lm.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without context."""
        return self._lm.tokenizer.start_id

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer, for the harness's cache."""
        return self._lm.tokenizer.fingerprint

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text, in which names of special tokens mean those tokens.

        A start token comes first where the tokenizer's own recipe puts one, unless the text begins
        with it.
        """
        del kwargs
        tokenizer = self._lm.tokenizer
        ids = tokenizer.encode(string, specials=True)
        adds = tokenizer.adds_start and add_special_tokens is not False
        return [tokenizer.start_id, *ids] if adds and ids[:1] != [tokenizer.start_id] else ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        del kwargs
        found: list[tuple[float, bool]] = []
        pairs = [self._fitting(context, ids) for _, context, ids in requests]
        # Choices of one question come one after the other: their context is gone through once.
        queries = [
            Query(context, [ids for _, ids in group])
            for context, group in groupby(pairs, key=lambda pair: pair[0])
        ]
        for scores in self._scorer(queries):
            for one in scores:
                check_finite(one.log_probs, "lm_eval, a continuation")
                found.append((float(one.log_probs.sum(dtype="float64")), bool(one.likeliest.all())))
        for (text, *_), answer in zip(requests, found, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return found

    def _fitting(self, context: list[int], ids: list[int]) -> tuple[list[int], list[int]]:
        """Without what stands before the last `max_length` inputs."""
        if not ids or len(ids) > self.max_length:
            raise RefusedError(
                f"lm_eval: a continuation of {len(ids)} tokens cannot be scored with a context of "
                f"{self.max_length}"
            )
        room = self.max_length + 1 - len(ids)
        return context[-room:], ids

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, each token given as many as the context holds."""
        del disable_tqdm
        windows = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(make_disjoint_window, cut):
                windows.append((None, *window))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[number] += log_prob
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers that end before the first of the strings that a task names."""
        del disable_tqdm
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        found = [""] * len(requests)
        for numbers in groups.values():
            contexts = [requests[number].args[0] for number in numbers]
            answers = self._write(contexts, requests[numbers[0]].args[1])
            for number, answer in zip(numbers, answers, strict=True):
                found[number] = answer
                self.cache_hook.add_partial("generate_until", requests[number].args, answer)
        return found

    def _write(self, contexts: Sequence[str], wishes: Mapping[str, Any]) -> list[str]:
        """Answers to prompts for which a task wishes the same."""
        settings = normalize_gen_kwargs(dict(wishes), self._max_new_tokens)
        unknown = set(settings) - {*_DRAWS, *_NO_MATTER}
        if unknown:
            raise RefusedError(
                f"lm_eval: a task sets {sorted(unknown)[0]} for generation; there is "
                f"{', '.join([*_DRAWS, 'do_sample', 'until', 'max_gen_toks'])}"
            )
        limit = int(settings["max_gen_toks"])
        if limit >= self.max_length:
            raise RefusedError(
                f"lm_eval: a task wants {limit} new tokens, and the context is {self.max_length}"
            )
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else [text for text in until if text]
        cut = Cut(self._lm.tokenizer, until)
        draws = {name: settings[name] for name in _DRAWS if settings.get(name) is not None}
        prompts = [self.tok_encode(text)[-(self.max_length - limit) :] for text in contexts]
        answers = self._lm.engine.generate(
            prompts,
            Sampling(max_new_tokens=limit, **{"temperature": 0.0, **draws}),
            key=jax.random.key(self._seed),
            stop_ids=self._lm.stop_ids,
            batch_size=self._batch_size,
            is_over=cut.is_over if until else None,
        )
        for (answer,) in answers:
            check_finite(answer.log_probs, "lm_eval, an answer")
        return [cut.text(answer.ids) for (answer,) in answers]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template, which the harness notes down."""
        return self._lm.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text; without the beginning of an answer it ends in the last message.

        Raises:
            RefusedError: the model has no template, or it does not accept the conversation.
        """
        source = self._lm.chat_template
        if source is None:
            raise RefusedError("lm_eval: this model has no chat template; try chat=never")
        template = template_of(self._lm.tokenizer, source, self.eot_token_id)
        text = template.render(chat_history, add_generation_prompt=add_generation_prompt).text
        if not add_generation_prompt:
            said = chat_history[-1]["content"].strip()
            text = text[: text.rindex(said) + len(said)]
        return text
