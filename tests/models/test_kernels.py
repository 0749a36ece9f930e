"""The comparison at the start of a run, and the kernels as a GPU would get them."""

import jax
import jax.numpy as jnp
import pytest

from llm.core.spec import RefusedError
from llm.models import kernels
from llm.models.attention import TokenIndex, attention
from llm.models.kernels import check_kernel, kernel
from llm.models.specs import LlamaSpec

MODEL = LlamaSpec(
    vocab_size=64, max_seq_len=64, n_layers=1, d_model=96, n_heads=6, n_kv_heads=2, d_mlp=64
)


def test_there_is_no_other() -> None:
    with pytest.raises(ValueError, match="attention=fast: expected one of xla, cudnn, flash"):
        kernel("fast")


def test_the_kernel_that_runs_here_holds() -> None:
    check_kernel("xla", MODEL, "float32")
    check_kernel("flash", MODEL, "bfloat16")


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (lambda q, k, v, _: attention(q, k, v, TokenIndex(_.segments * 0 + 1, _.positions)), "out"),
        (lambda q, k, v, _: attention(q, jax.lax.stop_gradient(k), v, _), "dk"),
        (lambda q, k, v, _: attention(q, k, v, _) * jnp.nan, "output"),
    ],
    ids=["leaks", "no-gradient", "nan"],
)
def test_a_wrong_kernel_is_refused(wrong, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cudnn_attention", wrong)
    with pytest.raises(RefusedError, match=rf"cudnn is wrong here: its {part}.*attention=xla"):
        check_kernel("cudnn", MODEL, "bfloat16")


def test_a_kernel_that_does_not_run_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"cudnn does not run here \(.*attention=xla"):
        check_kernel("cudnn", MODEL, "bfloat16")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # jax 0.12
@pytest.mark.parametrize("name", ["cudnn", "flash"])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_kernels_hold_on_a_gpu(name: str, head_dim: int) -> None:
    check_kernel(name, MODEL.replace(head_dim=head_dim), "bfloat16")
