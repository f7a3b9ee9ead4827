"""The supernet and the derived model are the same function where they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer import cost
from dartformer.attention import ATTENTIONS, parse
from dartformer.derivations.base import Trained
from dartformer.derivations.top_k import TopK
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.models.supernet import inherit, supernet
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import GRANULARITIES, SearchSpace

B, N = 3, 13
CANDIDATES = ("full", "local(window=2)", "linear", "linformer(rank=4)", "uniform", "identity")


def sizes(**changes):
    return TransformerConfig(
        **{
            "vocabulary": 11,
            "classes": 5,
            "length": N,
            "layers": 2,
            "heads": 3,
            "head_dim": 4,
            "model_dim": 10,
            "mlp_dim": 7,
            **changes,
        }
    )


def space_of(config, granularity="head", candidates=CANDIDATES):
    return SearchSpace(
        tuple(parse(c) for c in candidates), config.layers, config.heads, granularity
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lengths = np.array([N, 5, 1])
    return jnp.array(rng.integers(1, 11, (B, N))), jnp.array(np.arange(N) < lengths[:, None])


@pytest.mark.parametrize(("projections", "pooling"), [("shared", "mean"), ("separate", "cls")])
def test_one_hot_supernet_is_the_derived_model(batch, projections, pooling):
    config = sizes(pooling=pooling)
    net = supernet(config, space_of(config), projections)
    weights = net.init(jax.random.key(1))
    apply = jax.jit(net.apply)
    rng = np.random.default_rng(2)
    for granularity in GRANULARITIES:
        space = space_of(config, granularity)
        for _ in range(2 if granularity == "head" else 1):
            genotype = space.random(rng)
            want = apply(weights, *batch, space.mixture(genotype))
            derived = transformer(config, genotype)
            got = jax.jit(derived.apply)(inherit(weights, space, genotype), *batch)
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=str(genotype))


def test_candidates_in_parallel_are_the_truncated_mixture(batch):
    """The derived hybrid is the supernet with all but k candidates left out and the others scaled
    to sum to one."""
    for norm in (True, False):
        config = sizes(branch_norm=norm)
        space = space_of(config, candidates=("full", "linformer(rank=4)", "linear", "identity"))
        net = supernet(config, space)
        weights = net.init(jax.random.key(1))
        mixture = np.random.default_rng(4).dirichlet(np.ones(4), (2, 3)).astype(np.float32)
        trained = Trained(space, mixture, None, None, None, None)
        for k in (2, 3)[: 1 + norm]:
            genotype = TopK(k)(trained).genotype
            kept = np.where(mixture >= np.sort(mixture, -1)[..., [-k]], mixture, 0)
            np.testing.assert_allclose(
                space.mixture(genotype), kept / kept.sum(-1, keepdims=True), atol=2e-4
            )
            want = jax.jit(net.apply)(weights, *batch, space.mixture(genotype))
            derived = transformer(config, genotype)
            inherited = inherit(weights, space, genotype)
            assert jax.tree.map(jnp.shape, inherited) == jax.tree.map(
                jnp.shape, jax.eval_shape(derived.init, jax.random.key(0))
            )
            np.testing.assert_allclose(jax.jit(derived.apply)(inherited, *batch), want, atol=1e-5)
    separate = supernet(config, space, "separate").init(jax.random.key(1))
    with pytest.raises(InputError, match="separate projections"):
        inherit(separate, space, genotype)


def test_inherited_weights_have_the_derived_models_structure(batch):
    config = sizes()
    space = space_of(config)
    weights = supernet(config, space, "separate").init(jax.random.key(1))
    genotype = space.random(np.random.default_rng(3))
    want = jax.eval_shape(transformer(config, genotype).init, jax.random.key(0))
    got = inherit(weights, space, genotype)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


@pytest.mark.parametrize("projections", ["shared", "separate"])
def test_a_mixture_is_the_weighted_sum_of_branches(batch, projections):
    """With one layer and linear everything else, the attention branch of a mixture is the mean of
    one-hot branches."""
    config = sizes(layers=1)
    space = space_of(config)
    net = supernet(config, space, projections)
    weights = net.init(jax.random.key(1))
    mixer = jax.jit(lambda m: _mixer_output(config, space, projections, weights, batch, m))
    uniform = jnp.full((3, len(CANDIDATES)), 1 / len(CANDIDATES))
    one_hot = [mixer(jnp.zeros_like(uniform).at[:, k].set(1)) for k in range(len(CANDIDATES))]
    np.testing.assert_allclose(mixer(uniform), sum(one_hot) / len(one_hot), atol=1e-5)


def _mixer_output(config, space, projections, weights, batch, row):
    from flax import nnx

    from dartformer.models.supernet import MixedHeads

    structure, _ = nnx.split(
        nnx.eval_shape(
            lambda: MixedHeads(config, space.candidates, projections, 0, rngs=nnx.Rngs(0))
        )
    )
    x = jax.random.normal(jax.random.key(5), (B, N, config.model_dim))
    return nnx.merge(structure, weights["blocks"][0]["mixer"])(
        x, batch[1], row, train=False, key=None
    )


def test_a_zero_column_is_not_computed(batch):
    """A branch that would fail every result with NaN is harmless while its column is zero, and only
    then."""
    config = sizes()
    space = space_of(config, candidates=("full", "linformer(rank=4)"))
    net = supernet(config, space)
    weights = net.init(jax.random.key(1))
    for block in weights["blocks"].values():
        block["mixer"]["own"] = jax.tree.map(lambda w: w * jnp.nan, block["mixer"]["own"])
    loss = jax.jit(jax.value_and_grad(lambda w, m: net.apply(w, *batch, m).sum(), argnums=1))
    off = jnp.broadcast_to(jnp.array([1.0, 0.0]), space.mixture_shape)
    value, gradient = loss(weights, off)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.isnan(loss(weights, jnp.full(space.mixture_shape, 0.5))[0])


def test_branches_are_compared_by_use_not_by_size(batch):
    """With branch_norm, multiplying the values of every branch by a constant changes the logits by
    nothing."""
    config = sizes(layers=1)
    space = space_of(config)
    for norm, same in ((True, True), (False, False)):
        net = supernet(sizes(layers=1, branch_norm=norm), space)
        weights = net.init(jax.random.key(1))
        mixture = jnp.full(space.mixture_shape, 1 / len(CANDIDATES))
        apply = jax.jit(net.apply)
        want = apply(weights, *batch, mixture)
        projection = weights["blocks"][0]["mixer"]["projections"][0]
        projection["v"] = projection["v"] * 100
        got = apply(weights, *batch, mixture)
        assert np.allclose(got, want, atol=1e-2) == same


@pytest.mark.parametrize("stem", ["none", "bigram"])
def test_causal_models_do_not_see_the_future(stem):
    config = sizes(causal=True, pooling="none", stem=stem)
    names = ("full", "local(window=2)", "linear", "uniform", "identity")
    net = supernet(config, space_of(config, candidates=names))
    weights = net.init(jax.random.key(0))
    mixture = jnp.full((2, 3, 5), 0.2)
    tokens = jax.random.randint(jax.random.key(1), (1, N), 1, 11)
    valid = jnp.ones((1, N), bool)
    apply = jax.jit(net.apply)
    before = apply(weights, tokens, valid, mixture)
    after = apply(weights, tokens.at[0, 7:].set(3), valid, mixture)
    np.testing.assert_allclose(after[0, :7], before[0, :7], atol=1e-5)
    assert not np.allclose(after[0, 7:], before[0, 7:], atol=1e-3)


@pytest.mark.parametrize("stem", ["none", "bigram"])
def test_padding_changes_nothing(batch, stem):
    config = sizes(stem=stem)
    net = supernet(config, space_of(config))
    weights = net.init(jax.random.key(0))
    mixture = jnp.full((2, 3, 6), 1 / 6)
    tokens, valid = batch
    apply = jax.jit(net.apply)
    want = apply(weights, tokens, valid, mixture)
    np.testing.assert_allclose(
        apply(weights, jnp.where(valid, tokens, 9), valid, mixture), want, atol=1e-5
    )
    np.testing.assert_allclose(
        apply(weights, tokens[1:2, :5], valid[1:2, :5], mixture), want[1:2], atol=1e-5
    )


def test_the_bigram_stem_adds_the_token_before(batch):
    """Where nothing else mixes, an answer depends on a token and the one before, and on no
    other."""
    config = sizes(stem="bigram", pooling="none", positions="none", layers=1)
    net = transformer(config, Genotype.homogeneous(parse("identity"), 1, 3))
    weights, apply = net.init(jax.random.key(0)), jax.jit(net.apply)
    tokens, valid = (
        batch[0],
        jnp.ones((B, N), bool).at[:, 6].set(False),
    )  # 7 comes after a token that is not there
    out = apply(weights, tokens, valid)
    moved = apply(weights, tokens.at[:, 4].set(tokens[:, 4] % 10 + 1).at[:, 6].set(3), valid)
    changed = np.abs(np.asarray(moved - out)).max((0, 2)) > 1e-6
    assert list(np.flatnonzero(changed[valid[0]])) == [4, 5]
    plain = cost.model_parameters(
        transformer(
            sizes(pooling="none", positions="none", layers=1),
            Genotype.homogeneous(parse("identity"), 1, 3),
        )
    )
    assert cost.parameters(weights) == plain + config.vocabulary * config.model_dim


def test_layers_as_one_loop_are_the_same_function(batch, compile_quickly):
    """Gradients by weights and mixture, with dropout, random projections, and a candidate that one
    layer skips."""
    candidates = ("full", "performer(features=4)", "linformer(rank=4)")
    with jax.enable_x64(True):
        found = []
        for scan in (0, 3):
            config = sizes(layers=3, dropout=0.3, dtype="float64", scan=scan)
            space = space_of(config, candidates=candidates)
            net = supernet(config, space)
            assert (
                "scan["
                in str(
                    jax.make_jaxpr(net.apply)(
                        net.init(jax.random.key(1)), *batch, jnp.ones(space.mixture_shape)
                    )
                )
            ) == bool(scan)
            mixture = jnp.linspace(0.1, 0.9, 27).reshape(space.mixture_shape).at[1, :, 0].set(0)

            def loss(weights, mixture, net=net):
                logits = net.apply(weights, *batch, mixture, train=True, key=jax.random.key(2))
                return (logits**2).sum()

            found.append(
                jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
                    net.init(jax.random.key(1)), mixture
                )
            )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), *found)


@pytest.mark.parametrize("projections", ["shared", "separate"])
def test_kept_branches_are_the_same_function(batch, projections, compile_quickly):
    """Values and gradients are those of branches that are computed again; but then none is passed
    over."""
    with jax.enable_x64(True):
        found = []
        for remat in (True, False):
            config = sizes(dropout=0.3, dtype="float64", scan=2)
            space = space_of(
                config, candidates=("full", "performer(features=4)", "linformer(rank=4)")
            )
            net = supernet(config, space, projections, remat=remat)
            mixture = jnp.linspace(0.1, 0.9, 18).reshape(space.mixture_shape)

            def loss(weights, mixture, net=net):
                logits = net.apply(weights, *batch, mixture, train=True, key=jax.random.key(2))
                return (logits**2).sum()

            weights = net.init(jax.random.key(1))
            assert ("cond[" in str(jax.make_jaxpr(loss)(weights, mixture))) == remat
            found.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(weights, mixture))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), *found)


def test_every_attention_trains_in_every_place(batch):
    """Gradients of the loss are finite for every parameter, and reach every branch's own
    parameters."""
    config = sizes()
    # One block needs no sorting, and no features reach beyond a window that sees all tokens.
    shorter = {"sinkhorn": "sinkhorn(block=4)", "window_linear": "window_linear(window=2)"}
    space = space_of(config, candidates=tuple(shorter.get(name, name) for name in ATTENTIONS))
    net = supernet(config, space)
    weights = net.init(jax.random.key(0))
    mixture = jnp.full(space.mixture_shape, 1 / len(space.candidates))
    gradient = jax.jit(jax.grad(lambda w: (net.apply(w, *batch, mixture) ** 2).sum()))(weights)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    for block in gradient["blocks"].values():
        for leaf in jax.tree.leaves(block["mixer"].get("own", {})):
            assert np.abs(leaf).max() > 0


def test_a_kernel_that_cannot_be_is_refused_before_anything_is_built():
    with pytest.raises(InputError, match="'cudnn' does not work here because it needs a CUDA GPU"):
        sizes(kernel="cudnn")
    with pytest.raises(InputError, match=r"unknown model.kernel 'flash'.*chunked"):
        sizes(kernel="flash")


def test_kernels_are_the_same_function_in_the_model(batch):
    genotype = Genotype.homogeneous(parse("full"), 2, 3)
    nets = [transformer(sizes(kernel=kernel), genotype) for kernel in ("dense", "chunked")]
    weights = nets[0].init(jax.random.key(0))
    dense, chunked = (jax.jit(net.apply)(weights, *batch) for net in nets)
    np.testing.assert_allclose(chunked, dense, atol=1e-5)


def test_partial_heads_hand_on_their_values(batch):
    """PC-DARTS with heads for channels: what is not mixed is as `identity` leaves it, and learns no
    query or key."""
    config = sizes(heads=4)
    space = space_of(config, "layer", ("full", "linformer(rank=4)", "identity"))
    whole, half = supernet(config, space), supernet(config, space, partial=2)
    weights = half.init(jax.random.key(1))
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(
        jnp.shape, whole.init(jax.random.key(1))
    )
    identity = jnp.zeros(space.mixture_shape).at[..., 2].set(1)
    run = jax.jit(half.apply)
    np.testing.assert_allclose(
        run(weights, *batch, identity), whole.apply(weights, *batch, identity), atol=1e-6
    )

    mixture = jax.nn.softmax(jax.random.normal(jax.random.key(2), space.mixture_shape), -1)
    moved = jax.jit(jax.grad(lambda w, m: jnp.sum(half.apply(w, *batch, m) ** 2), (0, 1)))(
        weights, mixture
    )
    for layer in range(2):
        mixer = moved[0]["blocks"][layer]["mixer"]
        held = np.arange(4) % 2 == layer
        for name in "qk":
            by_head = np.abs(mixer["projections"][0][name]).max((0, 2))
            assert ((by_head > 0) == held).all()
        assert (np.abs(mixer["projections"][0]["v"]).max((0, 2)) > 0).all()
        assert ((np.abs(moved[1][layer]).max(-1) > 0) == held).all()

    # By definition, for the first layer's heads: the mixture where it is mixed, identity where it
    # is not.
    def mixed(l):
        return jnp.where((np.arange(4) % 2 == l)[:, None], mixture[l], identity[l])

    same = whole.apply(weights, *batch, jnp.stack([mixed(0), mixed(1)]))
    np.testing.assert_allclose(run(weights, *batch, mixture), same, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("layer", "shared", 3), "must divide the 4 heads"),
        (("layer", "shared", 0), "must divide"),
        (("head", "shared", 2), "granularity='head'"),
        (("layer", "separate", 2), "projections='separate'"),
    ],
)
def test_partial_heads_that_make_no_sense_are_refused(options, message):
    granularity, projections, partial = options
    config = sizes(heads=4)
    with pytest.raises(InputError, match=message):
        supernet(config, space_of(config, granularity), projections, partial)
