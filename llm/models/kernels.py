"""What computes the attention of whole rows: plain XLA, or a kernel for NVIDIA GPUs.

A kernel that is wrong shows in no error, only in a worse model: `check_kernel` compares it with the
plain form on the machine where it is to run.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llm.core.hardware import ATTENTION_KERNELS
from llm.core.spec import RefusedError
from llm.models.attention import Attention, TokenIndex, attention, visible
from llm.models.specs import ModelSpec

# Of bf16's rounding: what was seen on an H100 is 2e-3 to 3e-3.
_TOLERANCE = 0.02


def kernel(name: str) -> Attention:
    """The function that is called `name` in `hardware.attention`.

    Raises:
        ValueError: there is none.
    """
    if name == "xla":
        return attention
    if name == "cudnn":
        return cudnn_attention
    if name == "flash":
        from llm.models.flash_attention import flash_attention  # Pallas takes a second to import

        return flash_attention
    raise ValueError(f"attention={name}: expected one of {', '.join(ATTENTION_KERNELS[1:])}")


def cudnn_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    index: TokenIndex,
) -> Float[Array, "B T N H"]:
    """cuDNN's flash attention, with the mask as a bias of shape [B, 1, T, T].

    Only bf16, and heads of a width that is a multiple of 8 and at most 128 (Ampere) or 256.
    """
    T = q_BTNH.shape[1]
    odd = T % 2  # the backward pass wants an even number
    q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q_BTNH, k_BTKH, v_BTKH))
    # The token that makes it even is a document of its own.
    index = TokenIndex(
        _longer(index.segments, odd, -1),
        _longer(index.positions, odd, -1),
        None if index.ends is None else _longer(index.ends, odd, T + odd),
    )
    mask_B1TS = visible(index, index)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask_B1TS, implementation="cudnn")[:, :T]


def _longer(x_BT: Array, more: int, value: int) -> Array:
    return jnp.pad(x_BT, ((0, 0), (0, more)), constant_values=value)


def check_kernel(name: str, model: ModelSpec, dtype: str) -> None:
    """Compare a kernel with the plain form: output and gradients, with this model's heads.

    The rows are packed, and their first document is two texts that begin alike.

    Raises:
        RefusedError: it differs, or does not run here.
    """
    if name == "xla":
        return
    rng = np.random.default_rng(0)
    B, T, N, K, H = 2, 301, model.n_heads, model.kv_heads, model.head_size

    def draw(heads: int) -> Array:
        return jnp.asarray(rng.standard_normal((B, T, heads, H)), jnp.dtype(dtype))

    q, k, v, d_out = draw(N), draw(K), draw(K), draw(N)
    documents = np.repeat([1, 2, 3, 0], [T // 2, 5, T // 3, T - T // 2 - 5 - T // 3])
    lengths = [T // 4, T // 8, T // 2 - T // 4 - T // 8, *np.bincount(documents)[[2, 3, 0]]]
    places = np.concatenate([np.arange(n) for n in lengths])
    places[T // 4 : T // 2] += T // 4  # both go on where the beginning ends
    ends = np.repeat(np.cumsum(lengths), lengths)
    ends[: T // 4] = T // 2
    columns = (documents, places, ends)
    index = TokenIndex(*(jnp.tile(jnp.asarray(x, jnp.int32), (B, 1)) for x in columns))

    @partial(jax.jit, static_argnums=0)
    def of(attend: Attention, *arrays: Array) -> list[Array]:
        out, backward = jax.vjp(lambda q, k, v: attend(q, k, v, index), *arrays[:3])
        return [out, *backward(arrays[3])]

    again = f"hardware.attention=xla runs without it. (hardware.attention={name})"
    try:
        got = of(kernel(name), q, k, v, d_out)
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RefusedError(
            f"attention kernel {name} does not run here ({text}). {again}"
        ) from error
    want = of(attention, *(x.astype(jnp.float32) for x in (q, k, v, d_out)))
    for part, x, y in zip(("output", "dq", "dk", "dv"), got, want, strict=True):
        off = float(jnp.linalg.norm(x.astype(jnp.float32) - y) / jnp.linalg.norm(y))
        if not off <= _TOLERANCE:  # NaN too
            raise RefusedError(
                f"attention kernel {name} is wrong here: its {part} is off by {off:.2g} of its "
                f"size, and {_TOLERANCE:g} would be rounding. {again}"
            )
