"""What runs on a GPU: lowered for one here, and run on one where there is one.

`LERNAEAN_TEST_PLATFORM=cuda,cpu pytest -m gpu` on a machine with a GPU runs the second half.
"""

import re
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from test_step import MODEL, batch, parts

from llm.core.hardware import HardwareSpec
from llm.core.mesh import make_mesh
from llm.data.specs import PackedSpec, TokenizerSpec
from llm.generate.rows import Plan, decode, empty_rows
from llm.generate.sampler import program_of, values_of
from llm.generate.specs import Sampling
from llm.models.specs import GPTSpec
from llm.plan import programs
from llm.train.experiment import ExperimentSpec, SamplesSpec
from llm.train.grpo.spec import GRPOSpec
from llm.train.parts import Parts

GPT = GPTSpec(vocab_size=64, max_seq_len=32, n_layers=2, d_model=32, n_heads=4, dropout=0.1)


@pytest.mark.parametrize("model", [GPT, MODEL], ids=["gpt", "llama"])
def test_the_step_lowers_for_cuda(model) -> None:
    stepper, factory = parts(model, compute_dtype="bfloat16", micro_batches=2)
    trace = jax.jit(stepper.train_step, donate_argnums=0).trace(factory.fresh(), batch())
    text = trace.lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    in_bf16 = [line for line in products if "bf16" in line]
    assert products and len(in_bf16) == len(products)  # no product was left in fp32 by accident


@pytest.mark.parametrize("model", [GPT, MODEL], ids=["gpt", "llama"])
def test_generation_lowers_for_cuda(model) -> None:
    _, factory = parts(model)
    sampling = Sampling(temperature=0.8, top_p=0.9)
    plan = Plan("bfloat16", "bfloat16", program_of(sampling))
    rows = empty_rows(model, jax.random.key(0), (2, 16), plan)
    stop_ids = np.zeros(1, np.int32)
    trace = decode.trace(
        model, factory.fresh().params, rows, values_of(sampling), stop_ids, 0, 4, plan
    )
    text = trace.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" in text and "bf16" in text


@pytest.fixture
def an_h100(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What JAX asks about the card when it lowers kernels, answered."""
    for check in ("check_compute_capability", "is_cuda_compute_capability_equal"):
        monkeypatch.setattr(fused_attention_stablehlo, check, lambda least: least == "9.0")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    if jax.__version_info__ < (0, 11):
        yield
        return
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda")
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("x",), auto, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


@pytest.mark.usefixtures("an_h100")
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # jax 0.12
@pytest.mark.parametrize(
    ("attention", "call", "each"),
    [("flash", "triton", 3), ("cudnn", "__cudnn$fmha", 2)],  # calls per layer, both ways
)
def test_the_step_contains_the_attention_kernel(attention: str, call: str, each: int) -> None:
    T = 48
    model = MODEL.replace(max_seq_len=T)
    stepper, factory = parts(model, compute_dtype="bfloat16", attention=attention)
    rows = {name: np.resize(x, (2, T)) for name, x in batch().items()}
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), factory.template)
    trace = jax.jit(stepper.train_step, donate_argnums=0).trace(state, rows)
    text = trace.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call" in line and call in line]
    assert len(calls) == each * model.n_layers
    scores = re.findall(rf"tensor<[0-9x]*{T}x{T}xf32>", text)
    assert not scores  # a kernel keeps them to itself


@pytest.mark.usefixtures("an_h100")
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # jax 0.12
@pytest.mark.parametrize(("attention", "call"), [("flash", "triton"), ("cudnn", "__cudnn$fmha")])
@pytest.mark.parametrize("what", ["train step", "score"])
def test_no_logits_of_whole_rows_and_no_scores_of_attention(
    what: str, attention: str, call: str
) -> None:
    """Nothing of [rows, T, vocabulary] or [T, T], in a trainer that looks twice."""
    T, V, rows = 48, 320, 4
    experiment = ExperimentSpec(
        name="x", model=MODEL.replace(max_seq_len=T, vocab_size=V),
        data=PackedSpec(seq_len=T, batch_size=rows, tokenizer=TokenizerSpec(vocab_size=300)),
        trainer=GRPOSpec(max_new_tokens=8, group_size=2, kl_weight=0.1),
        hardware=HardwareSpec(
            device="gpu", compute_dtype="bfloat16", attention=attention, loss_chunk=32,
            micro_batch=rows,
        ).settled("gpu"),
        samples=SamplesSpec(every=None),
    )  # fmt: skip
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    parts = Parts(experiment, experiment.model, experiment.hardware, "gpu", mesh)
    trace = {"train step": programs.train_step, "score": programs.score}[what](parts, {})
    text = trace.lower(lowering_platforms=("cuda",)).as_text()
    assert call in text and re.search(rf"tensor<[0-9x]*{V}xf32>", text)  # of a chunk
    kinds = "b?f" if attention == "flash" else "f32"  # cuDNN takes its mask as bf16
    assert not re.findall(rf"tensor<(?:[0-9]+x)*{T}x{T}x{kinds}", text)
    assert not re.findall(rf"tensor<{rows}x{T}x{V}xf", text)
    assert not re.findall(rf"tensor<{rows * T}x{V}xf", text)


@pytest.mark.gpu
@pytest.mark.parametrize("model", [GPT, MODEL], ids=["gpt", "llama"])
def test_a_gpu_computes_what_the_cpu_computes(model) -> None:
    losses = {}
    for platform in ("cpu", "gpu"):
        with jax.default_device(jax.devices(platform)[0]):
            stepper, factory = parts(model)
            state, step = factory.fresh(), jax.jit(stepper.train_step)
            for seed in range(3):
                state, metrics = step(state, batch(seed=seed))
            losses[platform] = float(metrics["train/loss"])
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=1e-3)
