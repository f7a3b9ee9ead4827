"""Options of a layer, whatever its attentions: shared keys and values, positions, q/k norm,
attention dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dartformer
from dartformer import config as configs
from dartformer import cost
from dartformer.attention import Full, parse
from dartformer.attention.base import Inputs
from dartformer.attention.conformance.case import quick
from dartformer.errors import InputError
from dartformer.models.mixers import take_heads
from dartformer.models.positions import alibi_slopes, rotate
from dartformer.models.sizes import TransformerConfig
from dartformer.models.supernet import inherit, supernet
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

B, N = 2, 11
EITHER = ("full", "local(window=2)", "identity")


def sizes(**changes):
    return TransformerConfig(
        **{
            "vocabulary": 11,
            "classes": 5,
            "length": N,
            "layers": 1,
            "heads": 4,
            "head_dim": 4,
            "model_dim": 10,
            "mlp_dim": 7,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return jnp.array(rng.integers(1, 11, (B, N))), jnp.array(np.arange(N) < np.array([[N], [5]]))


def some_weights(net):
    """Weights of which none is where training starts, so that a gain of one is not mistaken for no
    gain."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: 0.5 * rng.standard_normal(w.shape).astype(w.dtype),
        jax.eval_shape(net.init, jax.random.key(0)),
    )


@pytest.mark.parametrize(
    ("changes", "projections", "granularity"),
    [
        ({"kv_heads": 2, "positions": "rotary", "qk_norm": True}, "shared", "head"),
        ({"kv_heads": 1, "positions": "alibi"}, "separate", "layer"),
        ({"positions": "alibi", "qk_norm": True}, "separate", "head"),
        ({"positions": "none", "attention_dropout": 0.3}, "shared", "head"),
    ],
)
def test_one_hot_supernet_is_the_derived_model(batch, changes, projections, granularity):
    config = sizes(**changes)
    space = SearchSpace(tuple(map(parse, EITHER)), 1, 4, granularity)
    net = supernet(config, space, projections)
    weights = some_weights(net)
    choice = np.array(
        [[1, 0, 2, 0]] if granularity == "head" else [[0]]
    )  # groups that are not neighbours
    genotype = space.genotype(choice)
    derived = transformer(config, genotype)
    inherited = inherit(weights, space, genotype)
    shapes = jax.eval_shape(derived.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, inherited) == jax.tree.map(jnp.shape, shapes)
    want = quick(net.apply)(weights, *batch, space.mixture(genotype))
    np.testing.assert_allclose(quick(derived.apply)(inherited, *batch), want, atol=1e-5)


def test_heads_that_share_keys_have_the_keys_of_the_model_with_copies(batch):
    few, many = sizes(kv_heads=2, qk_norm=True), sizes(qk_norm=True)
    full = Genotype.homogeneous(parse("full"), 1, 4)
    weights = some_weights(transformer(few, full))
    own = weights["blocks"][0]["mixer"]["projections"][0]
    copies = {
        **own,
        **{
            name: jnp.repeat(own[name], 2, axis)
            for name, axis in (("k", 1), ("v", 1), ("k_norm", 0))
        },
    }
    mixer = {**weights["blocks"][0]["mixer"], "projections": {0: copies}}
    copied = {**weights, "blocks": {0: {**weights["blocks"][0], "mixer": mixer}}}
    want = quick(transformer(many, full).apply)(copied, *batch)
    np.testing.assert_allclose(
        quick(transformer(few, full).apply)(weights, *batch), want, atol=1e-6
    )


def test_what_shared_heads_save():
    full = Genotype.homogeneous(parse("full"), 1, 4)
    base, few, normed = sizes(), sizes(kv_heads=1), sizes(kv_heads=1, qk_norm=True)
    parameters = [cost.model_parameters(transformer(c, full)) for c in (base, few, normed)]
    assert parameters[0] - parameters[1] == 2 * 10 * 3 * 4  # W_k and W_v lack three heads
    assert (
        parameters[2] - parameters[1] == (4 + 1) * 4
    )  # a gain for each number of each head of q and of k
    assert cost.flops(base, full) - cost.flops(few, full) == N * 2 * (2 * 10 * 3 * 4)
    kept = [cost.attention_cost(c, full, 0).state_bytes for c in (base, few)]
    assert kept == [2 * N * 4 * 4 * 4, 2 * N * 4 * 4]
    mixed = Genotype(((parse("full"), parse("local(window=2)")) * 2,))
    # The windows read the keys that the full heads of their group keep.
    assert cost.attention_cost(few, mixed, 0).state_bytes == 2 * 4 * 4 * N


def test_a_rotated_product_depends_on_the_distance_alone():
    q, k = (
        jnp.broadcast_to(jax.random.normal(jax.random.key(i), (1, 1, 2, 8)), (1, N, 2, 8))
        for i in range(2)
    )
    products = np.einsum("bnhd,bmhd->hnm", rotate(q), rotate(k))
    for shift in range(-N + 1, N):
        along = np.diagonal(products, shift, 1, 2)
        np.testing.assert_allclose(along, along[:, :1] * np.ones_like(along), atol=1e-5)
    assert np.ptp(products[0, 0]) > 0.1
    np.testing.assert_allclose(
        jnp.linalg.norm(rotate(q), axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-6
    )
    turned = rotate(jnp.zeros((1, 3, 1, 4)).at[..., 1].set(1.0))[
        0, 2, 0
    ]  # angle 2 / 10000^(2 / 4) of pair (1, 3)
    np.testing.assert_allclose(turned, [0, np.cos(0.02), 0, np.sin(0.02)], atol=1e-6)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_positions_inside_attentions_are_relative_and_matter(positions):
    """A text moved to the right behind padding has the answer it had; one in another order has
    not."""
    config = sizes(positions=positions)
    net = transformer(config, Genotype(((parse("full"), parse("local(window=2)")) * 2,)))
    weights, apply = some_weights(net), quick(net.apply)
    text = jnp.array([[3, 1, 4, 1, 5, 9]])
    pad = N - text.shape[1]

    def answer(left, text=text):
        width = (left, pad - left)
        return apply(
            weights,
            jnp.pad(text, ((0, 0), width)),
            jnp.pad(jnp.ones_like(text, bool), ((0, 0), width)),
        )

    np.testing.assert_allclose(answer(pad), answer(0), atol=1e-5)
    assert np.abs(answer(0, text[:, ::-1].at[:, :2].set(text[:, :2])) - answer(0)).max() > 1e-3


def test_slopes_are_the_published_ones_and_follow_the_head():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(6), [2.0**-i for i in (2, 4, 6, 8, 1, 3)])
    np.testing.assert_allclose(alibi_slopes(1), [2.0**-8])
    x = jnp.zeros((1, 2, 4, 4))
    taken = take_heads(
        Inputs(x, x, x, slopes=jnp.asarray(alibi_slopes(4)), dropout=0.2, kernel="dense"), (3, 1)
    )
    np.testing.assert_allclose(taken.slopes, alibi_slopes(4)[[3, 1]])
    assert (taken.dropout, taken.kernel) == (0.2, "dense")


def test_attention_dropout_holds_in_training_only(batch):
    config = sizes(attention_dropout=0.5)
    full = Genotype(((parse("full"), parse("uniform")) * 2,))
    net, plain = (
        transformer(config, full),
        transformer(dataclasses.replace(config, attention_dropout=0.0), full),
    )
    weights = some_weights(net)
    train = quick(lambda key: net.apply(weights, *batch, train=True, key=key))
    one, again, other = (train(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(
        quick(net.apply)(weights, *batch), quick(plain.apply)(weights, *batch), atol=1e-6
    )


REFUSED = [
    (
        {"model.positions": "rotary", "space.candidates": "full,linear"},
        r"linear\(.*does not work with rotary",
    ),
    (
        {"model.positions": "alibi", "space.candidates": "full,linformer(rank=4)"},
        r"linformer\(.*does not work with alibi",
    ),
    (
        {"model.attention_dropout": "1"},
        "model.attention_dropout must be at least 0 and below 1, got 1.0",
    ),
    (
        {"model.kv_heads": "3"},
        "model.kv_heads must divide model.heads = 4, or be 0 for as many; got 3",
    ),
    ({"model.kv_heads": "-1"}, "model.kv_heads must divide"),
    (
        {"model.positions": "rotary", "model.head_dim": "5", "space.candidates": "full,identity"},
        "must be even, got 5",
    ),
    (
        {"model.head_dim": "7", "space.candidates": "full,differential"},
        r"differential\(.*does not work with a head width of 7 because it needs a multiple of 2",
    ),
    (
        {"model.head_dim": "7", "space.candidates": "full,parallel(members=(linear,differential))"},
        r"parallel\(.*does not work with a head width of 7 because it needs a multiple of 2",
    ),
    ({"model.positions": "rope"}, r"unknown model.positions 'rope'.*rotary, alibi"),
    (
        {"model.kv_heads": "2", "search.projections": "separate", "space.granularity": "head"},
        "does not work with search.projections",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_is_one_line_before_anything_is_built(changes, message):
    config = dartformer.defaults("listops")
    configs.override(config, changes)
    with pytest.raises(InputError, match=message) as caught:
        configs.build(config)
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True, repr=False)
class Undropped(Full):
    traits = dataclasses.replace(Full.traits, dropout="")


def test_networks_refuse_what_their_attentions_cannot_take():
    """Rotated queries look like any others: an attention cannot see them, so the network must."""
    config = sizes(positions="rotary")
    with pytest.raises(InputError, match="does not work with rotary"):
        transformer(config, Genotype.homogeneous(parse("linear"), 1, 4))
    with pytest.raises(InputError, match="does not work with rotary"):
        supernet(config, SearchSpace((parse("full"), parse("linear")), 1, 4))
    with pytest.raises(InputError, match=r"does not support attention dropout, got a rate of 0\.1"):
        transformer(sizes(attention_dropout=0.1), Genotype.homogeneous(Undropped(), 1, 4))
    mixed = SearchSpace((parse("full"), parse("identity")), 1, 4, "head")
    shared = sizes(kv_heads=2)
    weights = some_weights(supernet(shared, mixed, "separate"))
    with pytest.raises(
        InputError, match="each 2 heads that share keys and values must have one attention"
    ):
        inherit(weights, mixed, mixed.genotype(np.array([[0, 1, 1, 1]])))
