"""Training a part of the parameters: adapters, or what patterns leave."""

import jax
import numpy as np
import optax
import pytest
from test_step import MODEL, batch, close, keys, parts

from llm.core.mesh import make_mesh, put_rows
from llm.core.spec import RefusedError
from llm.models.parameter import named, parameters
from llm.models.specs import LoRASpec
from llm.train.optimizer_specs import AdamWSpec, MuonSpec, OptaxSpec
from llm.train.trainable import n_frozen_matmul, split, trained_names

LORA = MODEL.replace(lora=LoRASpec(rank=2, targets=["query", "value", "down"]))
N_ADAPTERS = 2 * 2 * ((32 + 32) + (32 + 16) + (64 + 32))  # layers, rank, widths


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_which_parameters_are_trained() -> None:
    everything = trained_names(MODEL)
    assert everything == named(parameters(MODEL.build(jax.random.key(0)))).keys()
    adapters = trained_names(LORA)
    assert len(adapters) == 2 * 2 * 3 and all("lora_" in name for name in adapters)
    frozen = {
        "embedding": {"embedding"},
        "blocks.0": {name for name in everything if name.startswith("blocks.0.")},
        "blocks.*.query": {f"blocks.{i}.query.kernel" for i in range(2)},
        "*norm*": {name for name in everything if "norm" in name},
    }
    for pattern, names in frozen.items():
        assert everything - trained_names(MODEL, (pattern,)) == names
    both = trained_names(MODEL, ("embedding", "*norm*"))
    assert everything - both == frozen["embedding"] | frozen["*norm*"]
    # Of adapters A can be frozen (LoRA-FA, Zhang et al. 2023).
    assert all(name.endswith("lora_b") for name in trained_names(LORA, ("*.lora_a",)))


@pytest.mark.parametrize(
    ("model", "freeze", "message"),
    [
        (MODEL, ("embeding",), r"trainer.freeze=\[embeding\]: embeding matches no parameter; the "
         r"parameters are blocks\.\*\.attention_norm\.scale, .*, embedding, final_norm\.scale"),
        (MODEL, ("embedding", "blocks.7"), r"blocks.7 matches no parameter"),
        (MODEL, ("*",), r"trainer.freeze=\[\*\]: leaves nothing to train"),
        (MODEL, ("blocks", "embedding", "final_norm"), r"leaves nothing to train"),
        (LORA, ("embedding",), r"embedding matches only what is frozen anyway"),
        (LORA, ("*.lora_?",), r"leaves nothing to train"),
    ],
)  # fmt: skip
def test_patterns_that_cannot_be_meant_are_refused(model, freeze, message) -> None:
    with pytest.raises(RefusedError, match=message):
        trained_names(model, freeze)


def test_frozen_weights_of_matrix_products_are_counted() -> None:
    assert n_frozen_matmul(MODEL, ()) == 0
    assert n_frozen_matmul(MODEL, ("*norm*",)) == 0
    assert n_frozen_matmul(MODEL, ("embedding",)) == 64 * 32  # it is the head
    assert n_frozen_matmul(MODEL, ("blocks", "final_norm")) == MODEL.n_matmul_params - 64 * 32
    assert n_frozen_matmul(LORA, ()) == MODEL.n_matmul_params
    untied = MODEL.replace(tied_head=False)
    assert n_frozen_matmul(untied, ("embedding",)) == 0
    assert n_frozen_matmul(untied, ("head",)) == 64 * 32
    assert LORA.n_matmul_params - MODEL.n_matmul_params == N_ADAPTERS
    difference = LORA.flops_per_token(16) - LORA.flops_per_token(16, MODEL.n_matmul_params)
    assert difference == 2 * MODEL.n_matmul_params


@pytest.mark.parametrize(
    "optimizer", [AdamWSpec(lr=1e-2), MuonSpec(lr=1e-2)], ids=["adamw", "muon"]
)
@pytest.mark.parametrize(
    ("model", "freeze"),
    [(LORA, ()), (LORA, ("*.lora_a",)), (MODEL, ("embedding", "blocks.0")), (MODEL, ("blocks",))],
    ids=["adapters", "half of adapters", "patterns", "the blocks"],
)
def test_only_the_trained_part_moves_and_has_state(model, freeze, optimizer) -> None:
    stepper, factory = parts(model, optimizer=optimizer, ema_decay=0.9, freeze=freeze)
    step = jax.jit(stepper.train_step)
    first = state = factory.fresh()
    for seed in range(2):  # B is zero at first, and so is the gradient of A
        state, _ = step(state, batch(seed=seed))
    trained, n_trained = trained_names(model, freeze), size(split(model, freeze, first.params)[0])
    for name, leaf in named(state.params).items():
        same = np.array_equal(leaf, named(first.params)[name])
        assert same == (name not in trained), name
    assert named(state.ema).keys() == trained
    moments = 2 if isinstance(optimizer, AdamWSpec) else 1  # Muon keeps one, Adam two
    small = 32  # counters and coefficients
    assert moments * n_trained <= size(state.opt_state) <= 2 * n_trained + small
    evaluated = named(state.eval_params)
    assert evaluated.keys() == named(state.params).keys()
    for name, leaf in evaluated.items():
        assert leaf is named(state.ema if name in trained else state.params)[name]
    if model is LORA and not freeze:
        assert n_trained == N_ADAPTERS


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_gradient_of_a_part_is_that_part_of_the_gradient(micro_batches: int) -> None:
    whole, factory = parts(micro_batches=micro_batches)
    params, freeze = factory.fresh().params, ("embedding", "blocks.0")
    expected, sums = jax.jit(whole._gradients)(params, batch(), keys(8))
    trained, frozen = split(MODEL, freeze, params)
    got, got_sums = jax.jit(whole._gradients)(trained, batch(), keys(8), frozen)
    close(got, split(MODEL, freeze, expected)[0], rtol=1e-4, atol=1e-5)
    close(got_sums, sums, rtol=1e-6)


def test_clipping_looks_at_what_is_trained() -> None:
    stepper, factory = parts(LORA, optimizer=OptaxSpec(lr=1.0, optimizer="sgd"), grad_clip=1e-3)
    before = factory.fresh()
    after, metrics = jax.jit(stepper.train_step)(before, batch())
    moved = optax.tree.norm(jax.tree.map(np.subtract, after.params, before.params))
    assert moved == pytest.approx(1e-3, rel=1e-3) and metrics["train/grad_norm"] > 1e-3


def test_frozen_matrices_in_bf16_compute_the_same() -> None:
    results = []
    for kept in ("float32", "bfloat16"):
        stepper, factory = parts(LORA, compute_dtype="bfloat16")
        factory = type(factory)(**{**vars(factory), "compute_dtype": kept})
        state = factory.fresh()
        for name, leaf in named(state.params).items():
            frozen = leaf.ndim == 2 and "lora_" not in name
            assert leaf.dtype == (kept if frozen else "float32"), name
        step = jax.jit(stepper.train_step, out_shardings=(factory.shardings, None))
        for seed in range(3):
            state, metrics = step(state, batch(seed=seed))
        results.append((split(LORA, (), state.params)[0], metrics))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_adapters_on_a_mesh() -> None:
    losses, weights = [], []
    for shape in ((1, 1), (2, 2)):
        mesh = make_mesh(jax.devices()[: shape[0] * shape[1]], *shape)
        stepper, factory = parts(LORA, mesh=mesh, micro_batches=2)
        state = factory.fresh()
        if shape[1] > 1:  # split where the base is; the rank is on every device
            query = state.params["blocks"][0]["query"]
            assert query["lora_a"].sharding.spec[0] == query["kernel"].sharding.spec[0] == "fsdp"
            assert query["lora_b"].sharding.is_fully_replicated
        step = jax.jit(
            stepper.train_step, donate_argnums=0, out_shardings=(factory.shardings, None)
        )
        for seed in range(3):
            state, metrics = step(state, put_rows(batch(seed=seed), mesh))
            losses.append(float(metrics["train/loss"]))
        weights.append(jax.tree.map(np.asarray, state.params))
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-5)
    close(weights[1], weights[0], atol=2e-4)


def test_given_weights_get_fresh_adapters() -> None:
    _, plain = parts(MODEL)
    _, factory = parts(LORA)
    params = jax.tree.map(lambda p: p + 1, plain.fresh().params)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(a.shape, b.shape), factory.base_template, params
    )
    state, fresh = factory.from_weights(params), factory.fresh()
    for name, leaf in named(state.params).items():
        source = fresh.params if "lora_" in name else params
        np.testing.assert_array_equal(leaf, named(source)[name])


def test_what_is_frozen_costs_no_gradient() -> None:
    """The compiled step neither computes nor keeps what only frozen weights would need."""
    costs = []
    for model in (MODEL, LORA):
        stepper, factory = parts(model.replace(max_seq_len=64))
        lowered = jax.jit(stepper.train_step).lower(factory.fresh(), batch(T=64))
        costs.append(lowered.compile().cost_analysis()["flops"])
    assert costs[1] < 0.85 * costs[0]
