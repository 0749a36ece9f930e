"""How GRPO trains: every choice that is published, and its bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llm.core.spec import RefusedError, knob
from llm.train.optimizer_specs import AdamWSpec, OptimizerSpec
from llm.train.schedules import ConstantSpec, ScheduleSpec
from llm.train.trainer_spec import BatchRows, Shaped, TrainerSpec

if TYPE_CHECKING:
    from llm.core.hardware import HardwareSpec
    from llm.data.conversations import ChatSettings
    from llm.generate.specs import Sampling
    from llm.train.experiment import ExperimentSpec
    from llm.train.origin import Origin
    from llm.train.step import Objective
    from llm.train.trainer import Trainer

ADVANTAGES = ("std", "none", "leave_one_out", "batch_std")
LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
REFERENCES = ("start", "periodic", "ema", "base")

# What every step logs, besides the rewards and what all trainers do.
_STEP_METRICS = (
    "reward/mean", "reward/std", "reward/zero_std_fraction", "reward/all_right_fraction",
    "reward/all_wrong_fraction", "reward/mixed_fraction", "reward/missing_fraction",
    "completions/length_mean", "completions/length_max", "completions/stopped_fraction",
    "policy/kl", "policy/kl_k1", "policy/kl_k2", "policy/entropy", "policy/clip_fraction",
    "policy/ratio", "policy/sampler_logprob_gap", "perf/prefill_time", "perf/decode_time",
    "perf/decode_tokens_per_second",
)  # fmt: skip

# Through the model, where hardware.micro_batch does not say: enough to keep the device busy, and no
# more, since what the last rows leave empty is gone through as well.
_TOKENS_AT_ONCE = {"cpu": 256}
_TOKENS_AT_ONCE_ELSEWHERE = 8192


@dataclass(frozen=True, kw_only=True)
class GRPOSpec(TrainerSpec):
    """Group-relative policy optimisation: answers are sampled, rewarded, and made more likely.

    As it stands it is the cheap on-policy form: one update per batch, no reference.
    """

    pretrained: ClassVar[bool] = True

    name: str = knob("grpo", "name of the trainer, used in the names of runs")
    steps: int = knob(200, "optimizer steps", gt=0)
    optimizer: OptimizerSpec = knob(AdamWSpec(lr=1e-5), "optimizer")
    schedule: ScheduleSpec = knob(ConstantSpec(warmup_steps=0), "learning rate over the steps")
    group_size: int = knob(8, "answers to each prompt; data.batch_size counts prompts", ge=2)
    max_new_tokens: int = knob(64, "tokens per answer at most", gt=0)
    temperature: float = knob(1.0, "divides the logits, in sampling and in the loss", gt=0)
    top_k: int = knob(0, "draw from the k likeliest tokens; 0 is off", ge=0)
    top_p: float = knob(1.0, "draw from the likeliest tokens that hold this much", gt=0, le=1)
    rows_decoded: int | None = knob(
        None, "answers that are written at a time; null: all of a batch", gt=0
    )
    template: str | None = knob(
        None, "file with a chat template; null: the model's own; a model without gets plain text"
    )
    rewards: Sequence[str] = knob(
        ["correct"], "what judges answers: correct, last_number, math, or FILE.py:FUNCTION"
    )
    reward_weights: Sequence[float] = knob([], "one for each; none at all: each counts 1")
    reward_timeout: float = knob(10.0, "seconds that judging one answer may take", gt=0)
    overlong_buffer: int = knob(
        0, "an answer's last so many tokens before the limit cost up to 1, evenly; 0 is off", ge=0
    )
    mask_truncated: bool = knob(False, "answers that reached the limit are not trained on")
    advantage: str = knob(
        "std", "rewards less their group's mean, divided by what", choices=ADVANTAGES
    )
    loss: str = knob("grpo", "published form of the loss", choices=LOSSES)
    clip_low: float = knob(0.2, "a ratio is bounded by 1 less this; not in cispo", ge=0, lt=1)
    clip_high: float = knob(0.2, "and by 1 plus this", ge=0)
    importance_cap: float | None = knob(
        None, "answers weigh as the trainer's policy has it, up to this; null: they weigh the same",
        gt=0,
    )  # fmt: skip
    epochs: int = knob(1, "times that a batch of answers is gone through", gt=0)
    mini_batches: int = knob(1, "optimizer steps each time", gt=0)
    kl_weight: float = knob(0.0, "weight of the divergence from the reference", ge=0)
    reference: str = knob(
        "start",
        "for kl_weight > 0; start: the first weights; periodic: the weights every so many steps; "
        "ema: their average; "
        "base: the weights beneath the adapters of model.lora",
        choices=REFERENCES,
    )
    reference_every: int = knob(100, "steps between copies (reference=periodic)", gt=0)
    reference_decay: float = knob(0.99, "decay per step (reference=ema)", gt=0, lt=1)
    entropy_weight: float = knob(0.0, "weight of the entropy, which is made larger", ge=0)
    dynamic_sampling: int = knob(
        0, "groups of equal rewards are replaced by others, so many times; 0: they stay", ge=0
    )
    eval_prompts: int = knob(64, "held-out prompts that are answered to evaluate", gt=0)
    eval_samples: int = knob(
        0, "answers drawn to each of them besides the likeliest one, for pass@k", ge=0
    )

    @property
    def keeps_reference(self) -> bool:  # noqa: D102
        return self.kl_weight > 0 and self.reference != "base"

    @property
    def on_policy(self) -> bool:
        """One update per batch of answers."""
        return self.epochs * self.mini_batches == 1

    def sampling(self) -> Sampling:
        """How answers are drawn."""
        from llm.generate.specs import Sampling

        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )

    def check(self) -> None:  # noqa: D102
        super().check()
        if not self.rewards:
            raise RefusedError("rewards=[]: name at least one, such as correct")
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise RefusedError(
                f"reward_weights={list(self.reward_weights)}: there are {len(self.rewards)} "
                "rewards; give as many, or none"
            )
        if self.overlong_buffer > self.max_new_tokens:
            raise RefusedError(
                f"overlong_buffer={self.overlong_buffer}: larger than "
                f"max_new_tokens={self.max_new_tokens}"
            )

    def check_with(self, experiment: ExperimentSpec) -> None:  # noqa: D102
        data, model = experiment.data, experiment.model
        if data.batch_size % self.mini_batches:
            raise RefusedError(
                f"data.batch_size={data.batch_size}: must be a multiple of "
                f"trainer.mini_batches={self.mini_batches}"
            )
        if self.max_new_tokens >= data.seq_len:
            raise RefusedError(
                f"trainer.max_new_tokens={self.max_new_tokens}: must be less than "
                f"data.seq_len={data.seq_len}, which holds a prompt besides"
            )
        if self.kl_weight and self.reference == "base" and not model.lora.rank:
            raise RefusedError(
                "trainer.reference=base: there is a base only beneath adapters; set "
                "model.lora.rank, or take reference=start"
            )

    def check_available(self) -> None:  # noqa: D102
        from llm.train.grpo.rewards import Rewards

        Rewards(self.rewards, self.reward_weights, self.reward_timeout).close()

    @property
    def step_metrics(self) -> list[str]:  # noqa: D102
        names = [name.replace(":", ".").rpartition(".")[2] for name in self.rewards]
        rewards = [f"reward/{name}{suffix}" for name in names for suffix in ("", "_std")]
        return [*_STEP_METRICS, *rewards, *super().step_metrics]

    def held_out_metrics(self, experiment: ExperimentSpec) -> list[str]:  # noqa: D102
        del experiment
        chances = [f"eval/pass_at_{2**i}" for i in range(self.eval_samples.bit_length())]
        mean = ["eval/accuracy", "eval/reward", "eval/missing_fraction", "eval/length_mean"]
        return [*mean, *chances]

    def objective(self, loss_chunk: int, row_shards: int = 1) -> Objective:  # noqa: D102
        from llm.train.grpo.policy_gradient import PolicyGradient

        return PolicyGradient(
            loss_chunk=loss_chunk * row_shards,
            loss=self.loss,
            temperature=self.temperature,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            kl_weight=self.kl_weight,
            entropy_weight=self.entropy_weight,
            importance_cap=self.importance_cap,
        )

    def mover(self) -> Callable[[Any, Any, Any], Any] | None:  # noqa: D102
        from llm.train.grpo.reference import mover_of

        return mover_of(self)

    @property
    def scores(self) -> tuple[str, ...]:
        """Log-probabilities that are worked out before a batch is trained on."""
        old = () if self.on_policy else ("old_log_probs",)
        return (*old, "reference_log_probs") if self.kl_weight else old

    def batch_rows(  # noqa: D102
        self, experiment: ExperimentSpec, hardware: HardwareSpec, platform: str
    ) -> BatchRows:
        data, devices = experiment.data, hardware.row_shards
        tokens = _TOKENS_AT_ONCE.get(platform, _TOKENS_AT_ONCE_ELSEWHERE)
        at_once = (hardware.micro_batch or max(tokens // data.seq_len // devices, 1)) * devices
        answers = data.batch_size // self.mini_batches * self.group_size
        at_once = min(at_once, _up_to(answers, devices))
        return BatchRows(_up_to(answers, at_once), at_once)

    def tokens_per_step(self, experiment: ExperimentSpec) -> int:
        """If each group fills a row, or has rows full of answers; padded, each answer a row."""
        from llm.data.specs import PackedSpec

        data, groups = experiment.data, experiment.data.batch_size // self.mini_batches
        if isinstance(data, PackedSpec):
            return groups * max(data.seq_len, self.group_size * self.max_new_tokens)
        return groups * self.group_size * data.seq_len

    def batch_arrays(self, experiment: ExperimentSpec, rows: BatchRows) -> dict[str, Shaped]:  # noqa: D102
        from llm.data.specs import PackedSpec
        from llm.train.grpo.rows import arrays, completion_tokens

        data, values = experiment.data, ("sampler_log_probs", *self.scores)
        C = completion_tokens(data.seq_len, shared=isinstance(data, PackedSpec))
        return arrays(rows.total, data.seq_len, C, values)

    def chat(self, own: str | None, *, given: bool) -> ChatSettings | None:  # noqa: D102
        from llm.data.chat_template import read_template
        from llm.data.conversations import ChatSettings

        if self.template is not None and not given:
            own = read_template(self.template)
        return None if own is None else ChatSettings(own)

    def build(self, experiment: ExperimentSpec, origin: Origin, share: tuple[int, int]) -> Trainer:  # noqa: D102
        from llm.train.grpo.trainer import GRPO

        return GRPO(self, experiment, origin, share)


def _up_to(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple
