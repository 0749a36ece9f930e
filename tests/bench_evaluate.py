"""Scoring of texts beside transformers; run by hand, not a test.

    python tests/bench_evaluate.py float32            # documents of 40 to 1500 tokens
    python tests/bench_evaluate.py bfloat16 gpu

SmolLM2-135M's shape with random weights: the log-probability of every token of some documents, as
an evaluation needs it. transformers' side sorts by length, pads batches of as many tokens as ours,
and takes its logits through log_softmax: how lm-evaluation-harness does it. The sides are those of
bench_sides.py. The losses are compared as well.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_sides import ask, names, start

VOCAB, CONTEXT, BATCH_TOKENS = 49152, 2048, 4096
SHAPE = {"n_layers": 30, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_mlp": 1536}


def documents(device: str) -> list[list[int]]:
    """Ids of texts, more of them for a GPU."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(40), np.log(1500), 512 if device == "gpu" else 12))
    return [rng.integers(1, VOCAB, int(n)).tolist() for n in lengths]


def ours(texts: list[list[int]], dtype: str, device: str, folder: Path):
    import jax
    from safetensors.numpy import save_file

    from llm.core.allocator import keep_freed_memory
    from llm.core.hardware import HardwareSpec
    from llm.core.machine import claim
    from llm.eval.scorer import Scorer
    from llm.eval.windows import windows
    from llm.generate.engine import Engine
    from llm.hub.weight_names import weight_table
    from llm.hub.weight_table import get, to_stored
    from llm.models.parameter import parameters
    from llm.models.specs import LlamaSpec

    spec = LlamaSpec(vocab_size=VOCAB, max_seq_len=8192, **SHAPE)
    wanted = HardwareSpec(device=device, compute_dtype=dtype, require=True, compilation_cache=None)
    hardware = claim(wanted).spec
    if device == "cpu":
        keep_freed_memory()  # as an evaluation does
    params = parameters(spec.build(jax.random.key(0)))
    weights = {
        weight.name: to_stored(get(params, weight.path), transposed=weight.transposed)
        for weight in weight_table(spec)
    }
    save_file(weights, folder / "model.safetensors")
    scorer = Scorer(
        Engine(spec, params, compute_dtype=dtype), context=CONTEXT, attention=hardware.attention,
        loss_chunk=hardware.loss_chunk, batch_tokens=BATCH_TOKENS,
    )  # fmt: skip
    queries = [query for ids in texts for query in windows(ids, CONTEXT, CONTEXT)]

    def run() -> list[float]:
        return [float(one.log_probs.sum()) for (one,) in scorer(queries)]

    return run


def transformers(texts: list[list[int]], dtype: str, device: str, folder: Path):
    import torch
    import transformers
    from safetensors.torch import load_file

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        tie_word_embeddings=True, attn_implementation="sdpa", rms_norm_eps=1e-5,
    )  # fmt: skip
    device = "cuda" if device == "gpu" else "cpu"
    model = transformers.LlamaForCausalLM(config).eval()
    missing, strange = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not strange and set(missing) <= {"lm_head.weight"}, (missing, strange)
    model.tie_weights()
    model = model.to(device, getattr(torch, dtype))
    order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
    batches: list[list[int]] = [[]]
    for number in order:
        rows = [*batches[-1], number]
        if batches[-1] and len(rows) * len(texts[rows[0]]) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(number)

    def run() -> list[float]:
        sums = [0.0] * len(texts)
        with torch.inference_mode():
            for batch in batches:
                width = len(texts[batch[0]])
                padded = [texts[n] + [0] * (width - len(texts[n])) for n in batch]
                mask = [[1] * len(texts[n]) + [0] * (width - len(texts[n])) for n in batch]
                ids, mask = (torch.tensor(x, device=device) for x in (padded, mask))
                logits = model(ids, attention_mask=mask).logits[:, :-1]
                of_all = torch.log_softmax(logits.float(), dim=-1)
                of_ids = of_all.gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]
                for number, value in zip(batch, of_ids.sum(1).tolist(), strict=True):
                    sums[number] = value
        return sums

    return run


def work(side: str, dtype: str, device: str, folder: Path) -> None:
    """Score once for each line that arrives; answer with seconds and sums."""
    run = (ours if side == "ours" else transformers)(documents(device), dtype, device, folder)
    for _ in sys.stdin:
        began = time.perf_counter()
        sums = run()
        sys.stdout.write(json.dumps([time.perf_counter() - began, sums]) + "\n")
        sys.stdout.flush()


def main(dtype: str, device: str = "cpu", rounds: int = 3) -> None:
    """Print medians, ratios, and how far the sides are apart."""
    compared = names(device)
    tokens = sum(len(ids) - 1 for ids in documents(device))
    answers: dict[str, list] = {side: [] for side in compared}
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for side in compared:  # ours comes first: it writes the weights
            sides[side] = start(__file__, side, dtype, device, folder)
            ask(sides[side])
        for _ in range(rounds):
            for side, process in sides.items():
                answers[side].append(ask(process))
        for process in sides.values():
            process.communicate()
    for side in compared:
        ratios = [t[0] / o[0] for t, o in zip(answers[side], answers["ours"], strict=True)]
        wall = statistics.median(seconds for seconds, _ in answers[side])
        sums, own = np.array(answers[side][-1][1]), np.array(answers["ours"][-1][1])
        sys.stdout.write(
            f"{dtype} {side:12s} {wall:7.2f} s {tokens / wall:9.1f} tokens/s  ours is "
            f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}), losses "
            f"differ by {abs(sums.sum() / own.sum() - 1):.1e} of their size\n"
        )


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(*sys.argv[2:5], Path(sys.argv[5]))
    else:
        main(*sys.argv[1:3])
