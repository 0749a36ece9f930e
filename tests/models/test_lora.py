"""Low-rank adapters: beside the base, merged into it, their gradients and their dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.spec import RefusedError
from llm.models.binding import bind
from llm.models.cache import KVCache
from llm.models.linear import Linear
from llm.models.lora import adapter_shapes, merge_lora, without_adapters
from llm.models.parameter import named, nested, parameters
from llm.models.specs import GPTSpec, LlamaSpec, LoRASpec

COMMON = {"vocab_size": 61, "max_seq_len": 48, "n_layers": 2, "d_model": 32, "n_heads": 4}
SPECS = {
    "gpt": GPTSpec(**COMMON, lora=LoRASpec(rank=3)),
    "llama": LlamaSpec(**COMMON, n_kv_heads=2, d_mlp=48, lora=LoRASpec(rank=3, rslora=True)),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
TOKENS = jax.random.randint(jax.random.key(0), (3, 11), 0, 61)


def fresh(spec):
    return parameters(spec.build(jax.random.key(1)))


def trained(spec):
    """Parameters as after some training: B is not zero any more."""
    leaves = named(fresh(spec))
    for i, (name, leaf) in enumerate(leaves.items()):
        if name.endswith("lora_b"):
            leaves[name] = 0.1 * jax.random.normal(jax.random.key(i), leaf.shape)
    return nested(leaves)


def logits(spec, params, **keywords):
    model = bind(spec, params)
    return model.logits(model(TOKENS, **keywords)[0])


def dropout_keys(seed: int):
    return jax.random.split(jax.random.key(seed), len(TOKENS))


@each_spec
def test_a_fresh_adapter_is_the_base_exactly(spec) -> None:
    base = spec.replace(lora=LoRASpec())
    with_adapters, without = fresh(spec), fresh(base)
    jax.tree.map(np.testing.assert_array_equal, without_adapters(with_adapters), without)
    np.testing.assert_array_equal(logits(spec, with_adapters), logits(base, without))


@each_spec
def test_merged_is_unmerged(spec) -> None:
    params = trained(spec)
    plain, merged = merge_lora(spec, params)
    assert plain == spec.replace(lora=LoRASpec())
    assert jax.tree.structure(merged) == jax.tree.structure(fresh(plain))
    ours = logits(spec, params)
    np.testing.assert_allclose(logits(plain, merged), ours, atol=1e-5)
    assert np.abs(ours - logits(plain, without_adapters(params))).max() > 1e-2
    # Merging what has no adapters changes nothing.
    again = merge_lora(plain, merged)
    assert again[0] == plain
    jax.tree.map(np.testing.assert_array_equal, again[1], merged)


def test_merging_keeps_types_and_adds_in_fp32() -> None:
    spec = SPECS["llama"]
    leaves = named(trained(spec))
    halved = {
        name: leaf.astype(jnp.bfloat16) if name.endswith("kernel") else leaf
        for name, leaf in leaves.items()
    }
    _, merged = merge_lora(spec, nested(halved))
    name = "blocks.1.gate"
    a, b = (np.float64(leaves[f"{name}.lora_{x}"]) for x in "ab")
    exact = np.float64(halved[f"{name}.kernel"]) + 16 / 3**0.5 * (a @ b)
    got = named(merged)[f"{name}.kernel"]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))


@each_spec
def test_decoding_with_adapters_equals_the_whole_pass(spec) -> None:
    model = bind(spec, trained(spec))
    cache, got = KVCache.create(spec, 3, 16), []
    for i in range(TOKENS.shape[1]):
        hidden, cache = model(TOKENS[:, i : i + 1], cache=cache)
        got.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(got, 1), model(TOKENS)[0], atol=2e-5, rtol=1e-4)


@each_spec
def test_gradients_are_those_of_the_formula(spec) -> None:
    """Against plain differentiation through W + scale A B in the model without adapters."""
    scale = {"gpt": 16 / 3, "llama": 16 / 3**0.5}[spec.name]
    params = trained(spec)
    base = without_adapters(params)
    adapters = {name: leaf for name, leaf in named(params).items() if "lora_" in name}
    target = jax.random.normal(jax.random.key(7), (*TOKENS.shape, 61))

    def with_adapters(adapters):
        return (logits(spec, nested({**named(base), **adapters})) * target).sum()

    def by_hand(adapters):
        leaves = named(base)
        for name in spec.adapted:
            product = adapters[f"{name}.lora_a"] @ adapters[f"{name}.lora_b"]
            leaves[f"{name}.kernel"] = leaves[f"{name}.kernel"] + scale * product
        return (logits(spec.replace(lora=LoRASpec()), nested(leaves)) * target).sum()

    ours, theirs = jax.grad(with_adapters)(adapters), jax.grad(by_hand)(adapters)
    for name, gradient in theirs.items():
        np.testing.assert_allclose(
            ours[name], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max()
        )


def test_a_begins_as_pefts_and_b_at_zero() -> None:
    linear = Linear(jax.random.key(0), 64, 48, std=0.02, axes=("embed", "mlp"), bias=True)
    linear.adapt(jax.random.key(1), LoRASpec(rank=32), 0)
    a = np.asarray(linear.lora_a[...])
    assert np.abs(a).max() <= 1 / 8
    assert a.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)
    assert not np.any(linear.lora_b[...])
    assert linear.lora_a.get_metadata()["axes"] == ("embed", "rank")
    assert linear.lora_b.get_metadata()["axes"] == ("rank", "mlp")


@each_spec
def test_dropout_needs_keys_and_is_of_the_row(spec) -> None:
    dropping = spec.replace(lora=spec.lora.replace(dropout=0.5))
    params = trained(spec)
    plain = logits(spec, params)
    np.testing.assert_array_equal(logits(dropping, params), plain)
    np.testing.assert_array_equal(logits(spec, params, dropout_keys_B=dropout_keys(0)), plain)
    one = logits(dropping, params, dropout_keys_B=dropout_keys(0))
    assert np.abs(one - plain).max() > 1e-2
    np.testing.assert_array_equal(one, logits(dropping, params, dropout_keys_B=dropout_keys(0)))
    assert np.abs(one - logits(dropping, params, dropout_keys_B=dropout_keys(1))).max() > 1e-2
    # A row's mask follows from its own key alone.
    keys = jnp.concatenate([dropout_keys(0)[:1], dropout_keys(1)[1:]])
    np.testing.assert_allclose(logits(dropping, params, dropout_keys_B=keys)[0], one[0], atol=1e-5)


def test_dropout_is_of_the_adapter_only_and_each_place_draws_its_own() -> None:
    linears = []
    for site in (5, 6):
        linear = Linear(jax.random.key(0), 32, 48, std=0.02, axes=("embed", "mlp"), bias=True)
        linear.adapt(jax.random.key(1), LoRASpec(rank=4, dropout=0.5), site)
        linears.append(linear)
    x = jax.random.normal(jax.random.key(2), (3, 7, 32))
    one, other = linears
    np.testing.assert_array_equal(one(x, dropout_keys(0)), one(x))  # B is zero
    for linear in linears:
        linear.lora_b[...] = jnp.ones((4, 48))
    assert np.abs(one(x, dropout_keys(0)) - other(x, dropout_keys(0))).max() > 1e-2
    # On average nothing is lost.
    many = jax.vmap(lambda i: one(x, jax.random.split(jax.random.key(i), 3)))(jnp.arange(3000))
    spread = np.asarray(many).std(0) / 3000**0.5
    assert (np.abs(many.mean(0) - one(x)) < 6 * spread).all()


def test_targets_by_name_and_by_place() -> None:
    llama = SPECS["llama"]

    def adapted(*targets: str) -> list[str]:
        return llama.replace(lora=LoRASpec(rank=2, targets=targets)).adapted

    assert len(adapted("*")) == 14
    assert adapted("query") == adapted("blocks.*.query") == ["blocks.0.query", "blocks.1.query"]
    assert adapted("blocks.1.*")[0] == "blocks.1.query" and len(adapted("blocks.1.*")) == 7
    assert adapted("value", "blocks.0.quer?") == [
        "blocks.0.query",
        "blocks.0.value",
        "blocks.1.value",
    ]
    assert LlamaSpec(**COMMON, n_kv_heads=2).adapted == []


@each_spec
@pytest.mark.parametrize("targets", [("*",), ("out", "blocks.1.up")])
def test_counts(spec, targets) -> None:
    spec = spec.replace(lora=LoRASpec(rank=5, targets=targets))
    base = spec.replace(lora=LoRASpec())
    leaves = named(fresh(spec))
    shapes = {name: leaf.shape for name, leaf in leaves.items() if "lora_" in name}
    assert shapes == adapter_shapes(spec)
    n_adapters = sum(np.prod(shape) for shape in shapes.values())
    widths = {"gpt": [(32, 32), (32, 128)], "llama": [(32, 32), (32, 48)]}[spec.name]
    if targets != ("*",):
        assert n_adapters == 5 * (2 * sum(widths[0]) + sum(widths[1]))
    assert spec.n_matmul_params == base.n_matmul_params + n_adapters
    # The table of widths in the spec says what the modules are.
    for name, leaf in leaves.items():
        if name.endswith("kernel"):
            assert leaf.shape == spec.linears[name.split(".")[2]]


def test_an_adapter_does_not_depend_on_the_others() -> None:
    some = SPECS["llama"].replace(lora=LoRASpec(rank=3, targets=("value",)))
    all_, few = named(fresh(SPECS["llama"])), named(fresh(some))
    assert len(few) < len(all_)
    for name, leaf in few.items():
        np.testing.assert_array_equal(leaf, all_[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 0.1}, r"dropout=0.1: does nothing with rank=0; set rank too"),
        ({"alpha": 32.0}, r"alpha=32.0: does nothing with rank=0"),
        ({"rslora": True}, r"rslora=True: does nothing with rank=0"),
        ({"targets": ["query"]}, r"targets=\[query\]: does nothing with rank=0"),
        ({"rank": 4, "targets": []}, r"targets=\[\]: no matrix gets an adapter"),
        ({"rank": -1}, r"rank=-1: expected a number at least 0"),
        ({"rank": 4, "dropout": 1.0}, r"dropout=1.0: expected a number less than 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message) -> None:
    with pytest.raises(RefusedError, match=message):
        LoRASpec(**settings)


def test_targets_that_are_not_there_are_refused() -> None:
    with pytest.raises(RefusedError) as error:
        GPTSpec(**COMMON, lora=LoRASpec(rank=4, targets=["up", "query"]))
    assert str(error.value) == (
        "lora.targets=[up,query]: query matches no matrix; there are qkv, out, up, down in "
        "blocks.0 to blocks.1"
    )
