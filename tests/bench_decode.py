"""Generation beside transformers; run by hand, not a test.

    python tests/bench_decode.py 1 float32      # batch size, type
    python tests/bench_decode.py 16 bfloat16
    python tests/bench_decode.py 32 bfloat16 gpu

SmolLM2-135M's shape with random weights, prompts of 64 tokens, 128 new ones, greedy. The sides are
those of bench_sides.py.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

import numpy as np
from bench_sides import ask, names, start

PROMPT, NEW, VOCAB = 64, 128, 49152


def ours(prompts: list[list[int]], dtype: str, device: str):
    import jax

    from llm.core.hardware import HardwareSpec
    from llm.core.machine import claim
    from llm.generate.engine import Engine
    from llm.generate.sampler import Sampling
    from llm.models.parameter import parameters
    from llm.models.specs import LlamaSpec

    spec = LlamaSpec(
        vocab_size=VOCAB, max_seq_len=8192, n_layers=30, d_model=576, n_heads=9, n_kv_heads=3,
        d_mlp=1536,
    )  # fmt: skip
    profile = HardwareSpec(device=device, compute_dtype=dtype, require=True, compilation_cache=None)
    machine = claim(profile)
    params = parameters(spec.build(jax.random.key(0)))
    engine = Engine(spec, params, compute_dtype=dtype, cache_dtype=machine.spec.cache_dtype)
    del params
    sampling = Sampling(max_new_tokens=NEW, temperature=0.0)

    def run() -> int:
        answers = engine.generate(prompts, sampling, key=jax.random.key(0))
        return sum(len(answer.ids) for (answer,) in answers)

    return run, machine.memory_used_gib


def transformers(prompts: list[list[int]], dtype: str, device: str):
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        tie_word_embeddings=True, attn_implementation="sdpa", eos_token_id=None,
    )  # fmt: skip
    device = "cuda" if device == "gpu" else "cpu"
    model = transformers.LlamaForCausalLM(config).to(device, getattr(torch, dtype)).eval()
    ids = torch.tensor(prompts, device=device)

    def run() -> int:
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
        return out[:, PROMPT:].numel()

    def memory() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    return run, memory


def work(side: str, batch: int, dtype: str, device: str) -> None:
    """Generate once for each line that arrives; answer with seconds, tokens and peak memory."""
    prompts = np.random.default_rng(0).integers(1, VOCAB, (batch, PROMPT)).tolist()
    make = ours if side == "ours" else transformers
    run, memory = make(prompts, dtype, device)
    for _ in sys.stdin:
        began = time.perf_counter()
        tokens = run()
        sys.stdout.write(json.dumps([time.perf_counter() - began, tokens, memory()]) + "\n")
        sys.stdout.flush()


def main(batch: str, dtype: str, device: str = "cpu", rounds: int = 5) -> None:
    """Print medians, ratios and peak memory."""
    sides = {side: start(__file__, side, batch, dtype, device) for side in names(device)}
    answers: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(rounds + 1):
        for side, process in sides.items():
            answers[side].append(ask(process))
    for side, process in sides.items():
        process.communicate()
        timed = answers[side][1:]  # the first warms up
        ratios = [its[0] / our[0] for its, our in zip(timed, answers["ours"][1:], strict=True)]
        wall = statistics.median(seconds for seconds, _, _ in timed)
        sys.stdout.write(
            f"batch {batch} {dtype} {side:12s} {wall:6.2f} s {timed[0][1] / wall:7.1f} tokens/s"
            f"  peak {timed[-1][2]:.2f} GiB  ours is {statistics.median(ratios):.2f} x"
            f" ({min(ratios):.2f} to {max(ratios):.2f})\n"
        )


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(sys.argv[2], int(sys.argv[3]), *sys.argv[4:6])
    else:
        main(*sys.argv[1:4])
