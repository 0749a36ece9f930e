"""Held-out prompts: how many of them the policy answers right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm.generate.specs import Sampling
from llm.report.pass_at_k import ks, pass_at_k
from llm.train.grpo.prompts import Prompt
from llm.train.grpo.sampling import Answering, mean_of_those_there, passed, step_key

_EVALUATION = 2  # purpose of a key


def evaluate(
    answering: Answering,
    params: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    samples: int,
    seed: int,
) -> dict[str, float]:
    """Answer held-out prompts; the same numbers are drawn each time.

    Args:
        answering: answers and judges.
        params: weights.
        prompts: to answer.
        sampling: how answers are drawn; besides, the likeliest tokens are taken once.
        samples: answers to draw to each prompt.
        seed: of the run.

    Returns:
        `eval/accuracy`, the share of right answers (first reward at least 1) by the likeliest
        tokens; `eval/reward`, their mean reward; `eval/length_mean`. With samples also
        `eval/pass_at_<k>` for k = 1, 2, 4, ..., the chance that one of k is right (unbiased, Chen
        et al. 2021). Answers to which the reward does not apply, or for which it failed, are left
        out; `eval/missing_fraction` of the likeliest ones are. What is left without any answer is
        not among the metrics.

    Raises:
        StopRequestedError: a stop was asked for.
    """
    key = step_key(seed, _EVALUATION, 0)
    likeliest = sampling.replace(temperature=0.0)
    watch = answering.watch("evaluation")
    groups = answering(params, prompts, likeliest, key, 1, watch)
    right_P1 = passed(groups)
    metrics = {
        "eval/accuracy": mean_of_those_there(right_P1),
        "eval/missing_fraction": float(np.isnan(right_P1).mean()),
        "eval/reward": mean_of_those_there(np.array([group.total for group in groups])),
        "eval/length_mean": float(np.mean([len(group.answers[0].ids) for group in groups])),
    }
    if samples:
        groups = answering(params, prompts, sampling, key, samples, answering.watch("pass@k"))
        right_PG = passed(groups)
        right_P, judged_P = np.nansum(right_PG, 1), (~np.isnan(right_PG)).sum(1)
        pairs = [*zip(judged_P.tolist(), right_P.astype(int).tolist(), strict=True)]
        for k in ks(samples):
            chances = [pass_at_k(judged, right, k) for judged, right in pairs if judged >= k]
            metrics[f"eval/pass_at_{k}"] = mean_of_those_there(np.array(chances))
    return {name: value for name, value in metrics.items() if not math.isnan(value)}
