"""Memory of a run on one device, by part and by stage.

A stage is a program of the run. What it needs is looked at in its moments: the loss, when all
activations are kept and some logits exist; the backward pass; the update, when all gradients do. It
needs what its fullest moment needs. The formulas count what the compiler has to keep, and were
compared with what it says (`tests/plan/test_calibration.py`).

L layers, D width, V vocabulary, N query heads, K key/value heads, H head width, F hidden size of
the MLP, T places of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from llm.core.devices import GIB
from llm.generate.batch import SEGMENT
from llm.generate.prompt_groups import group_rows
from llm.generate.rows import SMALLEST, bucket
from llm.models.attention import block_of
from llm.models.specs import ModelSpec
from llm.train.grpo.spec import GRPOSpec
from llm.train.log_probs import WIDEST
from llm.train.parts import Parts
from llm.train.trainable import split

_FP32 = 4
_PROGRAM = int(0.7 * GIB)  # on a CPU the interpreter, libraries and compiled programs are there too


@dataclass(frozen=True)
class Need:
    """Bytes on one device, by part."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def fullest(moments: Iterable[dict[str, float]]) -> dict[str, float]:
    """The moment that needs most."""
    return max(moments, key=lambda moment: sum(moment.values()))


@dataclass(frozen=True)
class MemoryPlan:
    """The stages of a run.

    Args:
        parts: of the run.
    """

    parts: Parts

    @property
    def model(self) -> ModelSpec:
        """What is trained."""
        return self.parts.model

    @property
    def width(self) -> int:
        """Bytes of a number in the compute type."""
        return jnp.dtype(self.parts.hardware.compute_dtype).itemsize

    @property
    def kept_width(self) -> int:
        """Bytes of an activation. XLA on CPUs computes with bf16 in fp32, and keeps that."""
        return _FP32 if self.parts.platform == "cpu" else self.width

    @property
    def tokens(self) -> int:
        """Of a micro-batch on one device."""
        rows = self.parts.rows.at_once // self.parts.hardware.row_shards
        return rows * self.parts.experiment.data.seq_len

    def state(self) -> dict[str, float]:
        """What is there all the time; exact."""
        state = self.parts.factory.template
        return {
            "weights": _bytes(state.params),
            "optimizer": _bytes(state.opt_state),
            "average (EMA)": _bytes(state.ema),
            "reference": _bytes(state.reference),
            "program": _PROGRAM if self.parts.platform == "cpu" else 0,
        }

    def batch(self) -> float:
        """The rows of a batch."""
        parts = self.parts
        arrays = parts.experiment.trainer.batch_arrays(parts.experiment, parts.rows)
        size = sum(math.prod(shape) * jnp.dtype(kind).itemsize for shape, kind in arrays.values())
        return size / parts.hardware.row_shards

    def train_step(self) -> Need:
        """Gradients of all micro-batches, and the update."""
        parts, width = self.parts, self.width
        trained, _ = split(
            self.model, parts.experiment.trainer.freeze, parts.factory.template.params
        )
        matrices = [p for p in jax.tree.leaves(trained) if p.ndim >= 2]
        vectors = [p for p in jax.tree.leaves(trained) if p.ndim < 2]
        gradients = width * _numbers(matrices) + _FP32 * _numbers(vectors)
        held = self.state() | {"batch": self.batch()}
        held["weights to compute with"] = self._copies(whole=self._head())
        # With micro-batches there are sums in fp32 from the start, and what comes is added at once.
        summed = parts.rows.micro_batches > 1
        held["gradients"] = _FP32 * _numbers([*matrices, *vectors]) if summed else 0
        kept, inside = self._activations()
        head = self._head_gradient(trained)
        later = held | {"weights to compute with": self._copies(whole=2 * self._block_weights())}
        moments = [
            held | {"activations": kept, "logits": self._logits(), "workspace": head},
            held
            | {"activations": kept, "logits": self._logits(at_product=True)}
            | {"workspace": head + self._head_product(trained)},
            later
            | {"activations": kept, "workspace": inside + self._attention()}
            | {"gradients": held["gradients"] + head},
            later
            | {"activations": self._block(self.tokens), "workspace": inside + self._attention()}
            | {"gradients": held["gradients"] or gradients},
        ]
        return _need(fullest(moments))

    def score(self) -> Need:
        """A pass that only looks, for old or reference log-probabilities."""
        held = self.state() | {"batch": self.batch()}
        held["weights to compute with"] = self._copies(whole=self._head())
        moments = [
            held
            | {"activations": self._hidden(self.tokens), "logits": self._logits(backward=False)},
            held | {"activations": self._block(self.tokens), "workspace": self._attention() / 2},
        ]
        return _need(fullest(moments))

    def prefill(self, prompts: int, longest: int, texts: int, new: int) -> Need:
        """A group of prompts into a cache, beside that of the rows for `texts`."""
        begun = bucket(longest - 1 + min(SEGMENT, new), SMALLEST, self.model.max_seq_len)
        columns = bucket(longest - 1, SMALLEST, self.model.max_seq_len)
        rows = group_rows(prompts, columns, self.parts.platform, self.parts.hardware.compute_dtype)
        scores = rows * self.model.n_heads * columns * columns / self._head_shards()
        return _need(
            self.state()
            | {"weights to compute with": self._copies()}
            # And one row with what all prompts begin with.
            | {"KV cache": self.cache(rows + 1, columns) / self._head_shards()}
            | {"other KV caches": self.cache(self._texts_here(texts), begun)}
            | {"activations": 4 * self._hidden(rows * columns)}
            | {"workspace": scores * (_FP32 + self.kept_width)}  # before and after the softmax
        )

    def decode(self, rows: int, longest: int) -> Need:
        """Tokens that are written, `rows` at a time, into caches for `longest` tokens."""
        fsdp, tensor = self.parts.hardware.fsdp, self.parts.hardware.tensor
        here, heads = self._texts_here(rows), self._head_shards()
        cache = self.cache(here, bucket(longest, SMALLEST, self.model.max_seq_len))
        # Weights that are split stay so: each device works out its part of the logits of all texts
        # that share them, and the parts are added up.
        shared = min(rows, here * fsdp) if fsdp > 1 else 0
        return _need(
            self.state()
            | {"weights to compute with": self._copies()}
            # Caches come with all their heads, and go with those of the device.
            | {"KV cache": cache + (cache / heads if heads > 1 else 0)}
            | {"logits": (here + shared) * self.model.vocab / tensor * _FP32}
        )

    def grow(self, rows: int, longest: int) -> Need:
        """Caches for `longest` tokens that take the place of those for half as many."""
        rows, capacity = self._texts_here(rows), bucket(longest, SMALLEST, self.model.max_seq_len)
        both = self.cache(rows, capacity) + self.cache(rows, capacity // 2)
        held = self.state() | {"weights to compute with": self._copies()}
        return _need(held | {"KV cache": both})

    def _texts_here(self, rows: int) -> int:
        """Of so many texts, those on one device: all of them where they do not divide."""
        shards = self.parts.hardware.row_shards
        return rows // shards if rows % shards == 0 else rows

    def _head_shards(self) -> int:
        """Parts into which heads can be split."""
        return math.gcd(self.parts.hardware.tensor, self.model.kv_heads)

    def cache(self, rows: int, capacity: int) -> float:
        """Keys and values of so many rows."""
        model = self.model
        numbers = 2 * model.n_layers * rows * capacity * model.kv_heads * model.head_size
        return numbers * jnp.dtype(self.parts.hardware.cache_dtype).itemsize

    def kept_per_token(self) -> float:
        """Bytes of activations that a backward pass without recomputation reads."""
        return self.model.n_layers * self._block(1)

    def _copies(self, whole: int = 0) -> float:
        """Matrices in the compute type, if they are kept in another.

        Where weights are split over devices and many tokens need them, each is put together when
        its turn comes: there is one's own share, and so many numbers that are `whole`.
        """
        everything = self.width * sum(math.prod(p.shape) for p in self._cast())
        n, tensor = self.parts.hardware.fsdp, self.parts.hardware.tensor
        if n == 1:
            return everything / tensor
        return (everything / n + self.width * whole) / tensor

    def _head(self) -> int:
        """Numbers of the output projection."""
        return self.model.vocab * self.model.d_model

    def own_head(self) -> int:
        """Bytes, in the compute type, of an output projection that is not the embedding."""
        params = self.parts.factory.template.params
        return self.width * _numbers(jax.tree.leaves(params.get("head", {})))

    def _block_weights(self) -> int:
        """Numbers of the matrices of a block."""
        return sum(n_in * n_out for n_in, n_out in self.model.linears.values())

    def cast(self) -> int:
        """Weights that are kept in another type than that of the matrix products."""
        return _bytes(self._cast())

    def _cast(self) -> list[Any]:
        kind = jnp.dtype(self.parts.hardware.compute_dtype)
        params = jax.tree.leaves(self.parts.factory.template.params)
        return [p for p in params if p.ndim >= 2 and p.dtype != kind]

    def _hidden(self, tokens: int) -> int:
        """The residual stream at one place."""
        return tokens * self.model.d_model * self.kept_width

    def _block(self, tokens: int) -> float:
        """What one block keeps: what goes into its matrix products and what comes out."""
        linears, D, tensor = self.model.linears, self.model.d_model, self.parts.hardware.tensor
        inputs = linears["out"][0] + linears["down"][0]
        lora = self.model.lora.rank * len(self.model.adapted) / self.model.n_layers
        # The residual stream, what is normalised of it and what is added to it are whole.
        split = self._outputs() - 2 * D + inputs
        numbers = 4 * D + split / tensor + lora
        return tokens * (numbers * self.kept_width + self.model.n_heads * _FP32 / tensor)

    def _outputs(self) -> int:
        """Numbers per token that the matrix products of a block give."""
        return sum(n_out for _, n_out in self.model.linears.values())

    def _activations(self) -> tuple[float, float]:
        """What is kept until the backward pass, and what one block has to have again in it."""
        layers, D = self.model.n_layers, self.model.d_model
        policy = self.parts.hardware.remat
        if self.parts.platform == "cpu":
            # There XLA merges what is computed again with what it was the first time, and works out
            # many gradients of weights late: what they need is kept besides.
            return 1.5 * layers * self._block(self.tokens), 0
        if policy == "none":
            return layers * self._block(self.tokens), 0
        if policy == "block":
            return layers * self._hidden(self.tokens), self._block(self.tokens)
        outputs = 2 * D + (self._outputs() - 2 * D) / self.parts.hardware.tensor
        outputs *= self.tokens * self.width
        return layers * outputs, self._block(self.tokens) - outputs

    def _logits(self, *, backward: bool = True, at_product: bool = False) -> float:
        """Of the tokens that have them at the same time; and their gradient.

        `at_product`: when that is multiplied by the hidden states, and the logits are gone.
        """
        model, chunk = self.model, self.parts.hardware.loss_chunk
        assert chunk is not None
        if isinstance(self.parts.experiment.trainer, GRPOSpec):
            rows = self.parts.rows.at_once // self.parts.hardware.row_shards
            T = self.parts.experiment.data.seq_len
            tokens = rows * min(max(chunk // rows, 1), WIDEST, T)
            several = 1 + backward  # log-probabilities and, in the backward pass, probabilities
        else:
            tokens, several = min(chunk, self.tokens), 1
        columns = model.vocab / self.parts.hardware.tensor
        return tokens * columns * (_FP32 * (several - at_product) + self.width * backward)

    def _head_gradient(self, trained: Any) -> float:
        """Of the hidden states and, if it is trained, of the output projection."""
        split = self.parts.hardware.fsdp * self.parts.hardware.tensor
        return self._head_in_fp32(trained) / split + self._hidden(self.tokens)

    def _head_product(self, trained: Any) -> float:
        """What a device's own tokens add to the latter; several devices then add up theirs."""
        several = self.parts.hardware.row_shards > 1
        return self._head_in_fp32(trained) / self.parts.hardware.tensor if several else 0

    def _head_in_fp32(self, trained: Any) -> int:
        head = "head" if "head" in self.parts.factory.template.params else "embedding"
        return self._head() * _FP32 if head in trained else 0

    def _attention(self) -> float:
        """Scores that exist at the same time in the backward pass."""
        hardware = self.parts.hardware
        T = self.parts.experiment.data.seq_len
        if hardware.attention == "flash":
            return 0
        if hardware.attention == "cudnn":
            return self.tokens * T * (1 + self.width)  # the mask
        return self.tokens * self.model.n_heads * block_of(T) * (2 * _FP32 + 2 * self.width)


def _need(moment: dict[str, float]) -> Need:
    return Need({name: round(size) for name, size in moment.items() if round(size)})


def _bytes(tree: Any) -> int:
    """On one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _numbers(leaves: Iterable[Any]) -> int:
    """On one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
