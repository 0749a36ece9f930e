"""Answers to prompts, with their rewards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float64, Key

from llm.core.hosts import is_first, said_by_first, several
from llm.data.tokenizer import Tokenizer
from llm.generate.batch import Completion
from llm.generate.engine import Engine
from llm.generate.specs import Sampling
from llm.generate.watch import Watch
from llm.train.grpo.example import Example
from llm.train.grpo.groups import Group
from llm.train.grpo.prompts import Prompt
from llm.train.grpo.rewards import RewardError, Rewards, Scores
from llm.train.stopping import StopRequestedError
from llm.train.trainer import Workbench


class Answering:
    """Answers prompts with given weights, and has the answers judged.

    Args:
        bench: of the run.
        tokenizer: of the model.
        rewards: judge the answers.
        rows: answers that are written at a time.
    """

    def __init__(self, bench: Workbench, tokenizer: Tokenizer, rewards: Rewards, rows: int) -> None:
        self._bench, self._tokenizer = bench, tokenizer
        self._rewards, self._rows = rewards, rows
        self._stop_ids = bench.stop_ids or (tokenizer.separator_id,)

    def __call__(
        self,
        params: Any,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        key: Key[Array, ""],
        n: int,
        watch: Watch,
    ) -> list[Group]:
        """`n` answers to each prompt.

        Raises:
            StopRequestedError: a stop was asked for meanwhile.
            RewardError: a reward cannot be had for any answer.
        """
        answers = self.written(params, prompts, sampling, key, n, watch)
        texts = [self._tokenizer.decode(answer.ids) for of_one in answers for answer in of_one]
        examples = [prompt.example for prompt in prompts for _ in range(n)]
        with self._bench.ledger("reward"):
            scores = self._judged(texts, examples)
        return [
            Group(
                prompt=prompt.ids,
                question=self._tokenizer.decode(prompt.ids, skip_specials=False),
                answers=answers[i],
                texts=texts[i * n : (i + 1) * n],
                total=scores.total[i * n : (i + 1) * n].tolist(),
                rewards={k: v[i * n : (i + 1) * n].tolist() for k, v in scores.by_name.items()},
            )
            for i, prompt in enumerate(prompts)
        ]

    def written(
        self,
        params: Any,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        key: Key[Array, ""],
        n: int,
        watch: Watch,
    ) -> list[list[Completion]]:
        """The answers alone, [prompt][sample]; see `__call__`."""
        bench = self._bench
        machine = bench.machine
        engine = Engine(
            bench.model,
            params,
            compute_dtype=machine.spec.compute_dtype,
            cache_dtype=machine.spec.cache_dtype,
            mesh=machine.mesh,
        )
        before = watch.prefill_seconds
        with bench.ledger("decode"):
            answers = bench.stop.wait_for(
                lambda: engine.generate(
                    [prompt.ids for prompt in prompts],
                    sampling,
                    key=key,
                    stop_ids=self._stop_ids,
                    n=n,
                    batch_size=self._rows,
                    watch=watch,
                )
            )
        bench.ledger.move("decode", "prefill", watch.prefill_seconds - before)
        return answers

    def _judged(self, texts: Sequence[str], examples: Sequence[Example]) -> Scores:
        """By the first process of the run, for all: a reward need not be the same twice."""
        if not several():
            return self._rewards(texts, examples)
        verdict = ""
        if is_first():
            try:
                verdict = json.dumps(self._rewards(texts, examples).to_json())
            except RewardError as error:
                verdict = json.dumps({"error": str(error)})
        found = json.loads(said_by_first(verdict))
        if "error" in found:
            raise RewardError(found["error"])
        return Scores.from_json(found)

    def watch(self, what: str) -> Watch:
        """Shows how far it is, and ends it early when a stop is asked for."""
        stop, report = self._bench.stop, self._bench.report

        def look(watch: Watch) -> None:
            if stop():
                raise StopRequestedError
            report.answering(what, watch.done, watch.total, watch.tokens)

        return Watch(look)


def passed(groups: Sequence[Group]) -> Float64[np.ndarray, "P G"]:
    """1 for answers that are right, to which the first reward gives 1 or more, and 0 for others.

    NaN where the first reward does not apply or failed: those are neither.
    """
    first_PG = np.array([next(iter(group.rewards.values())) for group in groups], np.float64)
    return np.where(np.isnan(first_PG), np.nan, first_PG >= 1)


def step_key(seed: int, purpose: int, step: int) -> Key[Array, ""]:
    """For all that is drawn at a step; the engine adds numbers of prompt, sample and token."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def mean_of_those_there(values: np.ndarray) -> float:
    """Without those that are NaN; NaN if there are no others."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")
