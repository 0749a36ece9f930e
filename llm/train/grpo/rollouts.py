"""Where batches come from: answers sampled with the weights of the moment, judged, laid out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from llm.core.spec import RefusedError
from llm.data.order import permutation
from llm.generate.watch import Watch
from llm.train.grpo.advantages import equal_groups, group_advantages
from llm.train.grpo.groups import Group
from llm.train.grpo.layout import BatchMaker
from llm.train.grpo.prompts import Prompt, Prompts
from llm.train.grpo.rewards import RewardError
from llm.train.grpo.sampling import Answering, mean_of_those_there, passed, step_key
from llm.train.grpo.spec import GRPOSpec
from llm.train.state import TrainState
from llm.train.trainer import Drawn, HostBatch

_ROLLOUT = 1  # purpose of a key
_PARTS = 6  # purpose of a permutation, next to those in `llm.data` and `prompts`

Score = Callable[[TrainState, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""`old_log_probs` and `reference_log_probs` of a batch, [R, C] each, as far as they are needed."""


class Rollouts:
    """Batches of answers.

    Args:
        spec: of the trainer.
        seed: of the run; with the number of the rollout it decides what is drawn.
        prompts: are answered.
        batch_size: prompts of a rollout.
        answering: answers them.
        make: lays answers out as a batch.
        own_rows: those of a batch that go onto this process's devices.
        score: looks at a batch with other weights; None: nothing needs to be known from it.
        show: is given the groups of each rollout.
        close: lets go of the rewards.
    """

    def __init__(
        self,
        spec: GRPOSpec,
        seed: int,
        prompts: Prompts,
        batch_size: int,
        answering: Answering,
        make: BatchMaker,
        own_rows: Callable[[HostBatch], HostBatch],
        score: Score | None,
        show: Callable[[int, Sequence[Group]], None],
        close: Callable[[], None],
    ) -> None:
        self._spec, self._seed, self._prompts = spec, seed, prompts
        self._batch_size = batch_size
        self._answering, self._make, self._score, self._show = answering, make, score, show
        self._own_rows, self._sampling = own_rows, spec.sampling()
        self.close = close
        # Groups are replaced a quarter of a batch at a time, or a whole one: two sizes of program.
        self._refill = max(1, batch_size // 4)
        self._warm = not spec.dynamic_sampling or self._refill == batch_size
        self._next_prompt = 0
        self._rollout = 0
        self._groups: list[Group] = []
        self._saved: list[dict[str, Any]] | None = None  # the groups as JSON, once asked for
        self._parts: list[list[int]] = []  # numbers of groups, one list per update to come

    def waits(self) -> bool:
        """When the answers are used up."""
        return not self._parts

    def next(self, state: TrainState) -> Drawn:
        """The next batch, of new answers if those before are used up."""
        metrics: dict[str, float] = {}
        if not self._parts:
            metrics = self._roll_out(state)
        groups = [self._groups[i] for i in self._parts.pop(0)]
        return Drawn(self._own_rows(self._make(groups)), metrics)

    def cursor(self) -> dict[str, Any]:
        """Where it is, with the answers that are still to be trained on."""
        if self._saved is None:
            self._saved = [group.to_json() for group in self._groups] if self._parts else []
        return {
            "next_prompt": self._next_prompt,
            "rollout": self._rollout,
            "groups": self._saved if self._parts else [],
            "parts": [list(part) for part in self._parts],
        }

    def restore(self, cursor: dict[str, Any]) -> None:
        """Go on where `cursor()` was taken.

        Raises:
            RefusedError: this is not such a cursor.
        """
        if not {"next_prompt", "rollout", "groups", "parts"} <= cursor.keys():
            raise RefusedError(f"cursor {str(cursor)[:80]}: not that of a trainer=grpo run")
        self._next_prompt, self._rollout = cursor["next_prompt"], cursor["rollout"]
        self._groups, self._saved = [Group.from_json(group) for group in cursor["groups"]], None
        self._parts = [list(part) for part in cursor["parts"]]

    def _roll_out(self, state: TrainState) -> dict[str, float]:
        """Fill groups and parts; nothing is changed before all of it has worked."""
        begin = time.perf_counter()
        spec = self._spec
        watch = self._answering.watch("answers")
        kept, seen, place = self._sampled(state, watch)
        if np.isnan([group.total for group in seen]).all():
            raise RewardError(
                f"None of trainer.rewards={list(spec.rewards)} applies to any of the "
                f"{len(seen) * spec.group_size} answers of a rollout: do the records have an "
                "answer (in answer, solution or completion)?"
            )
        advantages = group_advantages(np.array([group.total for group in kept]), spec.advantage)
        for group, row in zip(kept, advantages.tolist(), strict=True):
            group.advantages = row
        if self._score is not None:
            self._add_scores(state, kept)
        self._groups, self._parts, self._saved = kept, self._divided(len(kept)), None
        self._show(int(state.step), kept)
        self._next_prompt, self._rollout = place, self._rollout + 1
        waited = {"perf/data_wait": time.perf_counter() - begin}
        return {**_metrics(seen), **_times(watch), **waited}

    def _sampled(self, state: TrainState, watch: Watch) -> tuple[list[Group], list[Group], int]:
        """Groups to train on, all groups that were sampled, and the next prompt's place."""
        spec, place = self._spec, self._next_prompt
        key = step_key(self._seed, _ROLLOUT, self._rollout)
        kept: list[Group] = []
        seen: list[Group] = []
        for attempt in range(1 + spec.dynamic_sampling):
            needed = self._batch_size - len(kept)
            few = attempt > 0 and needed <= self._refill
            prompts, place = self._prompts.draw(place, self._refill if few else self._batch_size)
            if not self._warm:
                self._compile_refill(state, prompts)
            key_of_attempt = jax.random.fold_in(key, attempt)
            new = self._answering(
                state.params, prompts, self._sampling, key_of_attempt, spec.group_size, watch
            )
            for group in new:
                self._penalise_length(group)
            seen += new
            equal = equal_groups(np.array([group.total for group in new]))
            keep_all = not spec.dynamic_sampling
            kept += [g for g, same in zip(new, equal, strict=True) if keep_all or not same]
            if len(kept) >= self._batch_size:
                break
        return kept[: self._batch_size] or new, seen, place

    def _compile_refill(self, state: TrainState, prompts: Sequence[Prompt]) -> None:
        """Most of it now, and not in the middle of the run; the answers are not looked at."""
        watch, key = self._answering.watch("first answers"), jax.random.key(self._seed)
        few, n = prompts[: self._refill], self._spec.group_size
        self._answering.written(state.params, few, self._sampling, key, n, watch)
        self._warm = True

    def _penalise_length(self, group: Group) -> None:
        buffer, limit = self._spec.overlong_buffer, self._spec.max_new_tokens
        if not buffer:
            return
        penalty = [overlong_penalty(len(answer.ids), limit, buffer) for answer in group.answers]
        group.rewards["overlong_penalty"] = penalty
        group.total = [a + b for a, b in zip(group.total, penalty, strict=True)]

    def _add_scores(self, state: TrainState, groups: Sequence[Group]) -> None:
        """One pass over all groups, some of them at a time: a batch's arrays are of one size."""
        assert self._score is not None
        size = self._batch_size // self._spec.mini_batches
        for first in range(0, len(groups), size):
            some = groups[first : first + size]
            for name, values_RC in self._score(state, self._make(some)).items():
                self._make.hand_back(some, name, values_RC)

    def _divided(self, count: int) -> list[list[int]]:
        """Numbers of groups for each update: in order at first, shuffled in later epochs."""
        spec = self._spec
        size = self._batch_size // spec.mini_batches
        parts: list[list[int]] = []
        for epoch in range(spec.epochs):
            order = list(range(count))
            if epoch:
                order = permutation(count, self._seed, _PARTS, self._rollout, epoch).tolist()
            parts += [order[i : i + size] for i in range(0, count, size)]
        return parts


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """From 0 down to -1 over the last `buffer` tokens before the limit.

    Yu et al. 2025 (DAPO), soft overlong punishment.
    """
    return min(0.0, (limit - buffer - length) / buffer)


def _metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What was sampled: rewards and lengths."""
    total_PG = np.array([group.total for group in groups])
    there_PG = ~np.isnan(total_PG)
    right_PG = passed(groups)
    lengths = [len(answer.ids) for group in groups for answer in group.answers]
    stopped = [answer.stopped for group in groups for answer in group.answers]
    judged_PG = right_PG[~np.isnan(right_PG).all(1)]
    all_right = mean_of_those_there(np.nanmin(judged_PG, 1, initial=1))
    none_right = mean_of_those_there(1 - np.nanmax(judged_PG, 1, initial=0))
    metrics = {
        "reward/mean": mean_of_those_there(total_PG),
        "reward/std": mean_of_those_there(np.array([_std(row) for row in total_PG])),
        "reward/zero_std_fraction": equal_groups(total_PG).mean(),
        "reward/all_right_fraction": all_right,
        "reward/all_wrong_fraction": none_right,
        "reward/mixed_fraction": 1 - all_right - none_right,
        "reward/missing_fraction": 1 - there_PG.mean(),
        "completions/length_mean": np.mean(lengths),
        "completions/length_max": np.max(lengths),
        "completions/stopped_fraction": np.mean(stopped),
    }
    for name in groups[0].rewards:
        values = np.array([group.rewards[name] for group in groups])
        metrics[f"reward/{name}"] = mean_of_those_there(values)
        metrics[f"reward/{name}_std"] = _std(values)
    return {name: float(value) for name, value in metrics.items()}


def _times(watch: Watch) -> dict[str, float]:
    return {
        "perf/prefill_time": watch.prefill_seconds,
        "perf/decode_time": watch.decode_seconds,
        "perf/decode_tokens_per_second": watch.tokens / max(watch.decode_seconds, 1e-9),
    }


def _std(values: np.ndarray) -> float:
    """Standard deviation of a sample, of those that there are."""
    there = values[~np.isnan(values)]
    return float(there.std(ddof=1)) if there.size > 1 else 0.0
