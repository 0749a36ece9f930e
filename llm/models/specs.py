"""What a model is made of: the specs of GPT and Llama.

Legend of the letters in array names, used in the whole package:
B batch rows, T query positions, S key positions, D d_model, N query heads, K key/value heads,
G = N / K queries per key/value head, H head_dim, F hidden size of the MLP, V vocabulary, L layers,
R rank of the adapters.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from llm.core.spec import RefusedError, Spec, knob

if TYPE_CHECKING:
    import jax

    from llm.models.gpt import GPT
    from llm.models.llama import Llama


@dataclass(frozen=True, kw_only=True)
class LoRASpec(Spec):
    """Low-rank adapters beside frozen matrices (Hu et al. 2021): only they are trained."""

    rank: int = knob(0, "inner width of the adapters; 0 has none", ge=0)
    alpha: float = knob(16.0, "adapters are scaled by alpha / rank", gt=0)
    dropout: float = knob(0.0, "dropped share of what the adapters see", ge=0, lt=1)
    targets: Sequence[str] = knob(
        ("*",), "matrices of the blocks that get one: patterns such as query or blocks.0.*"
    )
    rslora: bool = knob(
        False, "scale by alpha / sqrt(rank) instead, which suits large ranks (Kalajdzievski 2023)"
    )

    def check(self) -> None:  # noqa: D102
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if not self.rank and value != field.default:
                raise RefusedError(
                    f"{field.name}={_shown(value)}: does nothing with rank=0; set rank too"
                )
        if not self.targets:
            raise RefusedError("targets=[]: no matrix gets an adapter; say rank=0 to have none")

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec, abc.ABC):
    """What every decoder has."""

    name: str = knob(doc="name of the model, used in the names of runs")
    vocab_size: int | None = knob(None, "rows of the embedding; null takes the tokenizer's", gt=0)
    max_seq_len: int = knob(1024, "longest sequence the model can see, tokens", gt=0)
    n_layers: int = knob(6, "decoder blocks", gt=0)
    d_model: int = knob(384, "width of the residual stream", gt=0)
    n_heads: int = knob(6, "query heads", gt=0)
    init_std: float = knob(0.02, "standard deviation of the initial weights", gt=0)
    pretrained: Sequence[str] = knob(
        [], "where published weights of this shape are; tried in order with init_from=pretrained"
    )
    lora: LoRASpec = knob(LoRASpec(), "low-rank adapters")

    def check(self) -> None:  # noqa: D102
        if not self.lora.rank:  # a hostile file may claim any number of layers: none are listed
            return
        paths = [f"blocks.{i}.{name}" for i in range(self.n_layers) for name in self.linears]
        for pattern in self.lora.targets:
            if not any(_chosen(path, [pattern]) for path in paths):
                raise RefusedError(
                    f"lora.targets={_shown(self.lora.targets)}: {pattern} matches no matrix; "
                    f"there are {', '.join(self.linears)} in blocks.0 to blocks.{self.n_layers - 1}"
                )

    @property
    @abc.abstractmethod
    def kv_heads(self) -> int:
        """Key/value heads."""

    @property
    @abc.abstractmethod
    def head_size(self) -> int:
        """Width of one head."""

    @abc.abstractmethod
    def build(self, key: jax.Array) -> GPT | Llama:
        """Make the Flax module with fp32 weights freshly drawn by this key."""

    @property
    @abc.abstractmethod
    def linears(self) -> dict[str, tuple[int, int]]:
        """The matrices of each block: width of what goes in and of what comes out, by name."""

    @property
    def adapted(self) -> list[str]:
        """Those that get an adapter, such as `blocks.0.query`."""
        if not self.lora.rank:
            return []
        paths = [f"blocks.{i}.{name}" for i in range(self.n_layers) for name in self.linears]
        return [path for path in paths if _chosen(path, self.lora.targets)]

    @property
    def n_matmul_params(self) -> int:
        """Weights that take part in a matrix product for each token, the head included."""
        blocks = self.n_layers * sum(n_in * n_out for n_in, n_out in self.linears.values())
        widths = sum(sum(self.linears[path.rpartition(".")[2]]) for path in self.adapted)
        return blocks + self.lora.rank * widths + self.d_model * self.vocab

    def flops_per_token(self, seq_len: int, n_frozen: int = 0) -> int:
        """Floating point operations to train on one token: forward and backward.

        6 per matrix weight, and 12 L N H T for attention scores and values (PaLM, Chowdhery et
        al. 2022, appendix B; the causal half is not discounted and remat is not counted). 4 for
        each of `n_frozen` matrix weights: gradients go through them, but they need none.
        """
        attention = 12 * self.n_layers * self.n_heads * self.head_size * seq_len
        return 6 * self.n_matmul_params - 2 * n_frozen + attention

    @property
    def vocab(self) -> int:
        """Rows of the embedding, once known."""
        if self.vocab_size is None:
            raise RefusedError("vocab_size=null: give a number, or a tokenizer to take it from")
        return self.vocab_size


def _chosen(path: str, patterns: Sequence[str]) -> bool:
    """Whether a matrix's path (`blocks.0.query`) or its own name fits one of the patterns."""
    names = (path, path.rpartition(".")[2])
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, kw_only=True)
class GPTSpec(ModelSpec):
    """GPT-2: pre-LayerNorm decoder with multi-head attention (Radford et al. 2019)."""

    name: str = knob("gpt", "name of the model, used in the names of runs")
    mlp_ratio: int = knob(4, "hidden size of the MLP, in multiples of d_model", gt=0)
    positions: str = knob("learned", "position embedding", choices=("learned", "sinusoidal"))
    activation: str = knob("gelu_tanh", "activation of the MLP", choices=("gelu_tanh", "gelu"))
    norm_eps: float = knob(1e-5, "added to the variance in LayerNorm", gt=0)
    dropout: float = knob(0.0, "dropped share of embeddings and residual branches", ge=0, lt=1)

    def check(self) -> None:  # noqa: D102
        super().check()
        if self.d_model % self.n_heads:
            raise RefusedError(f"n_heads={self.n_heads}: must divide d_model={self.d_model}")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise RefusedError(f"d_model={self.d_model}: sinusoidal positions need an even width")

    @property
    def kv_heads(self) -> int:  # noqa: D102
        return self.n_heads

    @property
    def head_size(self) -> int:  # noqa: D102
        return self.d_model // self.n_heads

    def build(self, key: jax.Array) -> GPT:  # noqa: D102
        from llm.models.gpt import GPT

        return GPT(self, key)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:  # noqa: D102
        D, F = self.d_model, self.mlp_ratio * self.d_model
        return {"qkv": (D, 3 * D), "out": (D, D), "up": (D, F), "down": (F, D)}


@dataclass(frozen=True, kw_only=True)
class RopeScalingSpec(Spec):
    """Stretching of the rotary wavelengths, so that a model sees more than it was trained on.

    `linear` stretches all of them by `factor` (position interpolation, Chen et al. 2023). `llama3`
    (Grattafiori et al. 2024) stretches those longer than original_max_seq_len / low_freq_factor,
    keeps those shorter than original_max_seq_len / high_freq_factor and blends between.
    """

    type: str = knob("llama3", "which wavelengths are stretched", choices=("llama3", "linear"))
    factor: float = knob(1.0, "stretch of the wavelengths; 1 switches scaling off", ge=1)
    low_freq_factor: float = knob(1.0, "see above; llama3 only", gt=0)
    high_freq_factor: float = knob(4.0, "see above; llama3 only", gt=0)
    original_max_seq_len: int = knob(
        8192, "sequence length before stretching, tokens; llama3 only", gt=0
    )

    def check(self) -> None:  # noqa: D102
        if self.high_freq_factor <= self.low_freq_factor:
            raise RefusedError(
                f"high_freq_factor={self.high_freq_factor}: must be greater than "
                f"low_freq_factor={self.low_freq_factor}"
            )
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if self.type == "linear" and value != field.default:
                raise RefusedError(f"{field.name}={value}: type=linear has no use for it")


@dataclass(frozen=True, kw_only=True)
class LlamaSpec(ModelSpec):
    """Llama: RMSNorm, rotary positions, gated MLP, grouped queries (Touvron et al. 2023)."""

    name: str = knob("llama", "name of the model, used in the names of runs")
    n_kv_heads: int = knob(2, "key/value heads; must divide n_heads", gt=0)
    head_dim: int | None = knob(None, "width of one head; null is d_model / n_heads", gt=0)
    d_mlp: int = knob(1024, "hidden size of the MLP", gt=0)
    activation: str = knob("silu", "activation of the gate", choices=("silu", "gelu", "relu"))
    norm_eps: float = knob(1e-5, "added to the mean square in RMSNorm", gt=0)
    rope_theta: float = knob(10_000.0, "base of the rotary wavelengths", gt=0)
    rope_scaling: RopeScalingSpec = knob(RopeScalingSpec(), "stretching of the wavelengths")
    tied_head: bool = knob(True, "output head shares the embedding")
    qkv_bias: bool = knob(False, "biases on the query, key and value projections")
    out_bias: bool = knob(False, "bias on the attention's output projection")
    mlp_bias: bool = knob(False, "biases in the MLP")

    def check(self) -> None:  # noqa: D102
        super().check()
        if self.n_heads % self.n_kv_heads:
            raise RefusedError(f"n_kv_heads={self.n_kv_heads}: must divide n_heads={self.n_heads}")
        if self.head_dim is None and self.d_model % self.n_heads:
            raise RefusedError(
                f"n_heads={self.n_heads}: must divide d_model={self.d_model} unless head_dim is set"
            )
        if self.head_size % 2:
            raise RefusedError(f"head_dim={self.head_size}: rotary positions need an even width")

    @property
    def kv_heads(self) -> int:  # noqa: D102
        return self.n_kv_heads

    @property
    def head_size(self) -> int:  # noqa: D102
        return self.head_dim or self.d_model // self.n_heads

    def build(self, key: jax.Array) -> Llama:  # noqa: D102
        from llm.models.llama import Llama

        return Llama(self, key)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:  # noqa: D102
        D, F = self.d_model, self.d_mlp
        NH, KH = self.n_heads * self.head_size, self.n_kv_heads * self.head_size
        attention = {"query": (D, NH), "key": (D, KH), "value": (D, KH), "out": (NH, D)}
        return {**attention, "gate": (D, F), "up": (D, F), "down": (F, D)}
