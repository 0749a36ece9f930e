"""GRPO as a trainer: its data are prompts, its batches are answers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from llm.core.hosts import several
from llm.core.mesh import replicated
from llm.core.spec import RefusedError
from llm.data.specs import PackedSpec
from llm.models.lora import without_adapters
from llm.models.specs import LoRASpec
from llm.report.samples import Sample
from llm.train.compiled import Compiled
from llm.train.experiment import ExperimentSpec
from llm.train.grpo.evaluation import evaluate
from llm.train.grpo.groups import Group
from llm.train.grpo.layout import BatchMaker
from llm.train.grpo.prompts import Prompts
from llm.train.grpo.rewards import Rewards
from llm.train.grpo.rollouts import Rollouts, Score
from llm.train.grpo.sampling import Answering
from llm.train.grpo.scoring import Scorer
from llm.train.grpo.spec import GRPOSpec
from llm.train.origin import Origin
from llm.train.samples import Sampler, sampler
from llm.train.state import TrainState
from llm.train.trainable import joined
from llm.train.trainer import HostBatch, Work, Workbench

_ANSWERED = 8  # held-out prompts whose answers are shown


class GRPO:
    """Shao et al. 2024, DeepSeekMath, and what others made of it.

    Args:
        spec: of this trainer.
        experiment: the whole of it.
        origin: where tokenizer and template come from.
        share: of each batch that goes onto this process's devices, see `llm.core.mesh.host_share`.
    """

    def __init__(
        self, spec: GRPOSpec, experiment: ExperimentSpec, origin: Origin, share: tuple[int, int]
    ) -> None:
        self._share = share
        tokenizer = origin.tokenizer()
        if tokenizer is None:
            raise RefusedError(
                "trainer=grpo: there is nothing to reward in what random weights say; init_from "
                "names weights to begin with (last:sft, hf:org/name, a run folder, ...)"
            )
        self._spec, self._experiment = spec, experiment
        data = experiment.data
        self._chat = origin.chat()
        missing = (
            [t for t in self._chat.new_tokens if t not in tokenizer.special_ids]
            if self._chat
            else []
        )
        if missing:
            raise RefusedError(
                f"trainer.template={spec.template}: writes special tokens that the model does not "
                f"have: {', '.join(missing)}; fine-tune it with trainer=sft first"
            )
        self.tokenizer = tokenizer
        stop_ids = origin.stop_ids(tokenizer) or (tokenizer.separator_id,)
        longest = data.seq_len - spec.max_new_tokens
        self._prompts = Prompts(data, experiment.seed, tokenizer, self._chat, stop_ids[0], longest)
        self.fingerprint = self._prompts.fingerprint

    def begin(self, bench: Workbench) -> Work:
        """The parts for the loop."""
        spec, experiment = self._spec, self._experiment
        weights = [float(weight) for weight in spec.reward_weights]
        # Several processes stop together, and only one of them judges.
        stop = (lambda: False) if several() else bench.stop
        rewards = Rewards(spec.rewards, weights, float(spec.reward_timeout), stop)
        # An evaluation may have more answers: it takes turns, in rows that there are anyway.
        rows = spec.rows_decoded or experiment.data.batch_size * spec.group_size
        answering = Answering(bench, self.tokenizer, rewards, rows)
        make = BatchMaker(
            spec=spec,
            size=experiment.data.batch_size // spec.mini_batches,
            lengths=experiment.data.row_lengths(),
            rows=bench.rows.total,
            rows_at_once=bench.rows.at_once,
            share_prompts=isinstance(experiment.data, PackedSpec),
        )
        source = Rollouts(
            spec,
            experiment.seed,
            self._prompts,
            experiment.data.batch_size,
            answering,
            make,
            self._own_rows,
            self._score(bench),
            self._show(bench),
            rewards.close,
        )
        held_out = self._prompts.held_out(spec.eval_prompts)
        sampling = spec.sampling()

        def judge(params: Any) -> dict[str, float]:
            seed, samples = experiment.seed, spec.eval_samples
            return evaluate(answering, params, held_out, sampling, samples, seed)

        every = experiment.samples.every
        return Work(source, judge if held_out else None, self._sampler(bench) if every else None)

    def _own_rows(self, batch: HostBatch) -> HostBatch:
        """Of a batch that every process has the whole of."""
        index, count = self._share
        return {name: np.split(rows, count)[index] for name, rows in batch.items()}

    def score(self, metrics: dict[str, float]) -> float | None:
        """The share of wrong answers."""
        accuracy = metrics.get("eval/accuracy")
        return None if accuracy is None else 1 - accuracy

    def _score(self, bench: Workbench) -> Score | None:
        """Passes with other weights, if the loss needs any."""
        spec = self._spec

        def scorer(model: Any) -> Compiled:
            pass_ = Scorer(model, bench.stepper)
            options = bench.machine.compiler_options
            whole = replicated(bench.machine.mesh)
            jitted = jax.jit(pass_, out_shardings=whole, compiler_options=options)
            return Compiled(jitted, bench.stop, bench.ledger)

        if not spec.scores:
            return None
        own = scorer(bench.model)
        base = scorer(bench.model.replace(lora=LoRASpec()))

        def score(state: TrainState, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            placed, found = bench.place(self._own_rows(batch)), {}
            with bench.ledger("score"):
                if not spec.on_policy:
                    found["old_log_probs"] = own(state.params, placed)
                if spec.kl_weight and spec.reference == "base":
                    found["reference_log_probs"] = base(without_adapters(state.params), placed)
                elif spec.kl_weight:
                    reference = joined(state.params, state.reference)
                    found["reference_log_probs"] = own(reference, placed)
                return {name: np.asarray(values) for name, values in found.items()}

        return score

    def _show(self, bench: Workbench) -> Callable[[int, Sequence[Group]], None]:
        """Writes the answers of a rollout as a table, as often as samples are drawn."""
        spec, every = self._spec, self._experiment.samples.every

        def show(step: int, groups: Sequence[Group]) -> None:
            # The first rollout at or after the step: one may serve several steps.
            if every is None or step % every >= spec.epochs * spec.mini_batches:
                return
            rows = [
                {
                    "prompt": group.question,
                    "completion": self.tokenizer.decode(answer.ids, skip_specials=False),
                    "reward": group.total[i],
                    **{f"reward/{name}": values[i] for name, values in group.rewards.items()},
                    "advantage": group.advantages[i],
                    "tokens": len(answer.ids),
                    "stopped": answer.stopped,
                }
                for group in groups
                for i, answer in enumerate(group.answers)
            ]
            bench.report.completions(step, rows)

        return show

    def _sampler(self, bench: Workbench) -> Sampler | None:
        """Answers to some held-out prompts, by the likeliest tokens or as samples say."""
        sample = sampler(
            self._experiment.samples,
            model=bench.model,
            tokenizer=self.tokenizer,
            chat=self._chat,
            questions=self._prompts.questions(_ANSWERED),
            stop_ids=bench.stop_ids or (self.tokenizer.separator_id,),
            machine=bench.machine,
            seed=self._experiment.seed,
        )
        if sample is None:
            return None

        def draw(params: Any, step: int) -> tuple[list[Sample], dict[str, float]]:
            # So few answers make no metric; an evaluation does.
            return bench.stop.wait_for(lambda: sample(params, step))[0], {}

        return draw
