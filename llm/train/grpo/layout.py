"""From groups to batches of one size: weights of the loss, and what need not be gone through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm.train.grpo.groups import Group
from llm.train.grpo.rows import (
    Answer,
    Layout,
    collate,
    completion_tokens,
    one_per_row,
    packed,
    place_of,
)
from llm.train.grpo.spec import GRPOSpec

_PER_ANSWER = ("grpo", "gspo")  # each answer weighs the same, whatever its length


@dataclass(frozen=True)
class BatchMaker:
    """Lays groups out as rows.

    Args:
        spec: of the trainer.
        size: groups of a batch. The loss is a mean over so many: where fewer are left that say
            which answers are better, the update is as much smaller, and the little that it goes by
            is not as loud as a whole batch.
        lengths: places a row may have, ascending; several only with one answer per row.
        rows: of a batch.
        rows_at_once: of a micro-batch.
        share_prompts: groups are packed into rows; else each answer has a row.
    """

    spec: GRPOSpec
    size: int
    lengths: tuple[int, ...]
    rows: int
    rows_at_once: int
    share_prompts: bool

    def __call__(self, groups: Sequence[Group]) -> dict[str, np.ndarray]:
        """The arrays, see `llm.train.grpo.rows.collate`."""
        answers, _ = self._answers(groups)
        layout, T = self._layout(groups, answers)
        return collate(
            layout,
            [group.prompt for group in groups],
            answers,
            T=T,
            C=completion_tokens(T, shared=self.share_prompts),
            rows=self.rows,
            rows_at_once=self.rows_at_once,
            divisor=self._divisor(groups) * self.size / len(groups),
            values=["sampler_log_probs", *groups[0].scores],
        )

    def hand_back(self, groups: Sequence[Group], name: str, values_RC: np.ndarray) -> None:
        """Give each answer its numbers of a batch made of these groups, as `scores[name]`."""
        answers, owners = self._answers(groups)
        layout, _ = self._layout(groups, answers)
        for group in groups:
            group.scores[name] = [np.zeros(len(a.ids), np.float32) for a in group.answers]
        for number, members in enumerate(layout):
            row = values_RC[place_of(number, self.rows, self.rows_at_once)]
            begin = 0
            for answer in members:
                owner, sample = owners[answer]
                n = len(answers[answer].ids)
                groups[owner].scores[name][sample] = np.array(row[begin : begin + n])
                begin += n

    def _layout(self, groups: Sequence[Group], answers: Sequence[Answer]) -> tuple[Layout, int]:
        prompts = [group.prompt for group in groups]
        if self.share_prompts:
            return packed(prompts, answers, self.lengths[-1]), self.lengths[-1]
        layout = one_per_row(answers)
        longest = max(
            (len(prompts[a.prompt]) + len(a.ids) - 1 for a in answers), default=self.lengths[-1]
        )
        return layout, next(T for T in self.lengths if longest <= T)

    def _answers(self, groups: Sequence[Group]) -> tuple[list[Answer], list[tuple[int, int]]]:
        """Those that change the weights, and the group and sample that each is."""
        spec = self.spec
        found: list[Answer] = []
        owners: list[tuple[int, int]] = []
        for number, group in enumerate(groups):
            for sample, completion in enumerate(group.answers):
                if not self._counts(group, sample):
                    continue
                advantage = group.advantages[sample]
                # Without KL and entropy its gradient is exactly 0.
                if advantage == 0 and not spec.kl_weight and not spec.entropy_weight:
                    continue
                values = {"sampler_log_probs": completion.log_probs}
                values |= {name: of_all[sample] for name, of_all in group.scores.items()}
                weight = 1 / len(completion.ids) if spec.loss in _PER_ANSWER else 1.0
                found.append(Answer(number, completion.ids, advantage, weight, values))
                owners.append((number, sample))
        return found, owners

    def _counts(self, group: Group, sample: int) -> bool:
        """An answer without a reward, or one that is masked, is not trained on."""
        cut = self.spec.mask_truncated and not group.answers[sample].stopped
        return not cut and not np.isnan(group.total[sample])

    def _divisor(self, groups: Sequence[Group]) -> float:
        """What the loss would be a mean over if these groups were all."""
        spec = self.spec
        rewarded = sum(int((~np.isnan(group.total)).sum()) for group in groups)
        if spec.loss in _PER_ANSWER:
            return float(rewarded)
        if spec.loss == "dr_grpo":
            return float(rewarded * spec.max_new_tokens)
        counted = (
            len(answer.ids)
            for group in groups
            for sample, answer in enumerate(group.answers)
            if self._counts(group, sample)
        )
        return float(sum(counted))
