"""Training throughput and memory beside torch and transformers; run by hand, not a test.

    python tests/bench_train_step.py gpt          # 6 layers x 384, vocabulary 8k, 16 x 256 tokens
    python tests/bench_train_step.py llama        # SmolLM2-135M's shape, 2 x 512 tokens
    python tests/bench_train_step.py gpt2-gpu     # 124M, 16 x 1024 tokens
    python tests/bench_train_step.py llama-gpu    # SmolLM2-135M's shape, 16 x 1024 tokens

Each side is a process of its own and they take turns, step by step. AdamW, clipped at norm 1; fp32
on CPUs, bf16 products beside fp32 weights on GPUs. The sides are those of bench_sides.py; on GPUs
there is also `torch-compiled`, which is torch with `torch.compile`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time

import numpy as np
from bench_sides import ask, names, start

SHAPES = {
    "gpt": (16, 256, 8192),
    "llama": (2, 512, 49152),
    "gpt2-gpu": (16, 1024, 50304),
    "llama-gpu": (16, 1024, 49152),
}


def ours(name: str):
    import jax
    import optax

    from llm.core.allocator import keep_freed_memory
    from llm.core.hardware import HardwareSpec
    from llm.core.machine import claim
    from llm.core.mesh import put_rows
    from llm.models.specs import GPTSpec, LlamaSpec
    from llm.train.next_token import NextToken
    from llm.train.optimizer_specs import AdamWSpec
    from llm.train.state import StateFactory
    from llm.train.step import Stepper

    B, T, V = SHAPES[name]
    model = GPTSpec(vocab_size=V, max_seq_len=T, n_layers=6, d_model=384, n_heads=6)
    if name == "gpt2-gpu":
        model = GPTSpec(vocab_size=V, max_seq_len=T, n_layers=12, d_model=768, n_heads=12)
    if name.startswith("llama"):
        model = LlamaSpec(
            vocab_size=V, max_seq_len=T, n_layers=30, d_model=576, n_heads=9, n_kv_heads=3,
            d_mlp=1536,
        )  # fmt: skip
    optimizer = AdamWSpec(lr=3e-4, weight_decay=0.01, b2=0.999)
    device = "gpu" if name.endswith("gpu") else "cpu"
    machine = claim(HardwareSpec(device=device, require=True, compilation_cache=None))
    if device == "cpu":
        keep_freed_memory()  # as a run does
    mesh, hardware = machine.mesh, machine.spec
    state = StateFactory(
        model=model, optimizer=optimizer.build({"lr": optax.constant_schedule(3e-4)}), seed=0,
        use_ema=False, mesh=mesh,
    ).fresh()  # fmt: skip
    stepper = Stepper(
        model=model, remat="none", attention=hardware.attention,
        objective=NextToken(hardware.loss_chunk, 0.0, 0.0), optimizer=optimizer,
        schedule=optax.constant_schedule, seed=0,
        compute_dtype=hardware.compute_dtype, micro_batches=1, grad_clip=1.0,
        ema_decay=None,
    )  # fmt: skip
    train_step = jax.jit(
        stepper.train_step,
        donate_argnums=0,
        compiler_options=machine.compiler_options,
    )
    ids = np.random.default_rng(0).integers(0, V, (B, T + 1)).astype(np.int32)
    batch = put_rows(
        {
            "tokens": ids[:, :-1],
            "targets": ids[:, 1:],
            "segment_ids": np.ones((B, T), np.int32),
            "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
            "loss_mask": np.ones((B, T), np.int32),
        },
        mesh,
    )

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, batch)
        return float(metrics["train/loss"])

    return step, machine.memory_used_gib


def torchs(name: str, compiled: bool):
    import torch
    import transformers

    B, T, V = SHAPES[name]
    torch.manual_seed(0)
    device = "cuda" if name.endswith("gpu") else "cpu"
    if name.startswith("gpt"):
        width, depth, heads = (768, 12, 12) if name == "gpt2-gpu" else (384, 6, 6)
        config = transformers.GPT2Config(
            vocab_size=V, n_positions=T, n_embd=width, n_layer=depth, n_head=heads,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa",
            use_cache=False,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=V, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=T,
            tie_word_embeddings=True, attn_implementation="sdpa", use_cache=False,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01, fused=True)
    ids = torch.tensor(np.random.default_rng(0).integers(0, V, (B, T + 1)), device=device)

    def loss_of(ids):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(ids[:, :-1]).logits.flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:].flatten())

    if compiled:
        loss_of = torch.compile(loss_of)

    def step() -> float:
        loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def memory() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    return step, memory


def work(side: str, name: str) -> None:
    """Do a step for each line that arrives; answer with seconds, CPU seconds, loss and memory."""
    step, memory = ours(name) if side == "ours" else torchs(name, side == "torch-compiled")
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        loss = step()
        times = time.perf_counter() - began, time.process_time() - cpu
        sys.stdout.write(json.dumps([*times, loss, memory()]) + "\n")
        sys.stdout.flush()


def main(name: str, rounds: int = 10) -> None:
    """Print medians, ratios and peak memory."""
    on_gpu = name.endswith("gpu")
    compared = (*names("gpu"), "torch-compiled") if on_gpu else names("cpu")
    sides = {side: start(__file__, side, name) for side in compared}
    answers: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(rounds + 2):
        for side, process in sides.items():
            answers[side].append(ask(process))
    B, T, _ = SHAPES[name]
    for side, process in sides.items():
        process.communicate()
        timed = answers[side][2:]
        seconds, cpu, _, peak = zip(*timed, strict=True)
        wall = statistics.median(seconds)
        ratios = [its[0] / our[0] for its, our in zip(timed, answers["ours"][2:], strict=True)]
        sys.stdout.write(
            f"{side:14s} {wall:6.3f} s/step  {statistics.median(cpu):6.2f} CPU s"
            f"  {B * T / wall:7.0f} tokens/s  peak {peak[-1]:.2f} GiB  ours is"
            f" {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})\n"
        )
    sys.stdout.write(f"medians of {rounds} rounds; load {os.getloadavg()[0]:.1f}\n")


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(sys.argv[2], sys.argv[3])
    else:
        main(sys.argv[1])
