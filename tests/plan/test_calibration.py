"""The formulas of a plan beside the compiler's own figures.

For GPUs: XLA's compiler for CUDA, which needs no GPU; `pip install -e ".[compile-cuda]"` and
`pytest -m compile_cuda`.
"""

import pytest

from llm.core.hardware import HardwareSpec
from llm.core.machine import claim
from llm.data.specs import PackedSpec
from llm.models.specs import GPTSpec, LlamaSpec, LoRASpec
from llm.plan.estimate import estimate
from llm.plan.exact import compiled
from llm.plan.target import target_by_name, target_here
from llm.train.experiment import ExperimentSpec
from llm.train.grpo.spec import GRPOSpec
from llm.train.supervised_specs import PretrainSpec, SFTSpec

GPT = GPTSpec(name="gpt", vocab_size=32768, n_layers=3, d_model=768, n_heads=12)
LLAMA = LlamaSpec(
    name="llama", vocab_size=32768, n_layers=3, d_model=768, n_heads=12, n_kv_heads=4, d_mlp=2048
)
TRAINERS = {
    "pretrain": PretrainSpec(ema_decay=0.99),
    "sft": SFTSpec(),
    "grpo": GRPOSpec(max_new_tokens=128, kl_weight=0.1),
}
H100 = HardwareSpec(name="h100", device="gpu", device_kind="H100 NVL", compute_dtype="bfloat16")


def check(target, model, trainer, within: float, T: int = 512, rows: int = 16) -> None:
    experiment = ExperimentSpec(
        name="x", model=model, data=PackedSpec(seq_len=T, batch_size=rows), trainer=trainer,
        hardware=target.spec,
    )  # fmt: skip
    found = estimate(experiment, target)
    figures = {one.stage.name: one for one in compiled(found)}
    assert {s.name for s in found.stages} - figures.keys() <= {"larger caches"}
    for name, one in figures.items():
        assert one.stage.need.total == pytest.approx(one.total, rel=within), name


@pytest.mark.compile_cuda
@pytest.mark.parametrize("remat", ["none", "dots", "block"])
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_one_gpu(model, trainer: str, remat: str) -> None:
    check(target_by_name(H100.replace(remat=remat)), model, TRAINERS[trainer], within=0.15)


@pytest.mark.compile_cuda
@pytest.mark.parametrize(
    "changes",
    [
        {"device_kind": "A6000"},
        {"micro_batch": 4},
        {"fsdp": 8},
        {"fsdp": 8, "remat": "block", "micro_batch": 1},
        {"data_parallel": 2, "fsdp": 2, "tensor": 2},
        {"attention": "cudnn"},
    ],
    ids=str,
)
def test_other_hardware(changes: dict) -> None:
    check(target_by_name(H100.replace(**changes)), LLAMA, PretrainSpec(), within=0.15, T=1024)


@pytest.mark.compile_cuda
@pytest.mark.parametrize(
    "changes",
    [{"fsdp": 8}, {"tensor": 4}, {"data_parallel": 2, "fsdp": 2, "tensor": 2}],
    ids=str,
)
def test_answers_on_several_gpus(changes: dict) -> None:
    check(target_by_name(H100.replace(**changes)), LLAMA, TRAINERS["grpo"], within=0.1)


@pytest.mark.compile_cuda
def test_adapters_on_a_gpu() -> None:
    model = LLAMA.replace(lora=LoRASpec(rank=16))
    check(target_by_name(H100), model, SFTSpec(), within=0.15)


@pytest.mark.parametrize(
    ("model", "trainer", "changes"),
    [
        (GPT, "pretrain", {}),
        (LLAMA, "grpo", {"micro_batch": 2}),
        (LLAMA, "sft", {"compute_dtype": "bfloat16"}),
    ],
    ids=["gpt", "llama-grpo", "llama-bf16"],
)
def test_a_cpu(model, trainer: str, changes: dict) -> None:
    hardware = HardwareSpec(
        device="cpu", peak_tflops=0.1, bandwidth=10.0, memory_gib=8.0, compilation_cache=None,
        **changes,
    )  # fmt: skip
    target = target_here(claim(hardware))
    assert target is not None
    check(target, model.replace(n_layers=2), TRAINERS[trainer], within=0.25, T=256, rows=8)
