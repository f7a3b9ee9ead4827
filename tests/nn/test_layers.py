"""The layers of `df.nn`: every type with its projections, beside the attention run by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

import dartformer as df
from dartformer.attention.base import Inputs
from dartformer.models.positions import rotate

NAMES = df.attention.names()
CROSS = [name for name in NAMES if df.parse(name).traits.cross]
B, N, E, H, D = 2, 12, 16, 4, 4

pytestmark = pytest.mark.usefixtures("compile_quickly")


def layer(spec, **options):
    options = {"max_length": N, "rngs": nnx.Rngs(0), **options}
    return df.nn.Attention(spec, E, H, **options)


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def mask(seed=0, length=N):
    """Right padding, and a hole."""
    valid = np.ones((B, length), bool)
    valid[0, length - 3 :] = False
    valid[1, 2] = False
    return jnp.asarray(valid)


def run(made, *arrays, **options):
    """A call as one program."""
    structure, state = nnx.split(made)

    @jax.jit
    def call(state, arrays):
        return nnx.merge(structure, state)(*arrays[0], **arrays[1], **options)

    named = {}
    for name in ("valid", "context_valid", "mask"):
        if name in options:
            named[name] = options.pop(name)
    return call(state, (arrays, named))


def modes(name):
    traits = df.parse(name).traits
    return [
        causal for causal in (False, True) if (traits.causal if causal else traits.bidirectional)
    ]


def by_hand(made, x, valid, causal):
    """Projections, attention and output without any of the layer's code."""
    p = made.heads.projections[0]
    q, k, v = (jnp.einsum("bne,ehd->bnhd", x, w[...]) for w in (p.q, p.k, p.v))
    keys = None
    if made.number is not None:
        key = jax.random.fold_in(jax.random.key(0), made.number[...])
        keys = jax.vmap(lambda head: jax.random.fold_in(key, head))(jnp.arange(H))
    inputs = Inputs(q, k, v, x, valid, keys)
    params = jax.tree.map(lambda leaf: leaf[...], made.heads.own[0], is_leaf=is_variable)
    y = made.row[0](params, inputs, causal=causal)
    return jnp.einsum("bnhd,hde->bne", y, p.o[...])


def is_variable(leaf):
    return isinstance(leaf, nnx.Variable)


@pytest.mark.parametrize("name", NAMES)
def test_every_type_is_its_attention_between_its_projections(name):
    x, valid = normal(B, N, E), mask()
    for causal in modes(name):
        made = layer(name, causal=causal)
        out = run(made, x, valid=valid)
        expected = by_hand(made, x, valid, causal)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        assert not np.asarray(out)[~np.asarray(valid)].any()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_nothing_of_the_future_reaches_a_causal_output(name):
    causal = df.parse(name).traits.causal
    made = layer(name, causal=causal)
    structure, state = nnx.split(made)

    @jax.jit
    def gradients(state, x):
        def early(state, x):
            # Squared, because a sum of normalized numbers may not depend on anything.
            return (nnx.merge(structure, state)(x)[:, : N // 2] ** 2).sum()

        return jax.grad(early, argnums=(0, 1), allow_int=True)(state, x)

    of_state, of_x = gradients(state, normal(B, N, E))
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.filter_state(of_state, nnx.Param))):
        assert np.isfinite(leaf).all()
    assert np.isfinite(of_x).all()
    assert np.asarray(of_x)[:, : N // 2].any()
    if causal:
        assert not np.asarray(of_x)[:, N // 2 :].any()


@pytest.mark.parametrize("name", NAMES)
def test_padding_may_hold_anything(name):
    made, valid = layer(name, causal=not df.parse(name).traits.bidirectional), mask()
    x = normal(B, N, E)
    changed = jnp.where(valid[..., None], x, 7.0)
    np.testing.assert_array_equal(run(made, x, valid=valid), run(made, changed, valid=valid))


@pytest.mark.parametrize("name", NAMES)
def test_types_that_decode_give_the_same_token_by_token(name):
    traits = df.parse(name).traits
    if not traits.decodes:
        with pytest.raises(df.InputError, match="cannot be run token by token"):
            layer(name).init_cache(B, N)
        return
    made = layer(name, causal=True, kv_heads=2, out_bias=True)
    made.out_bias[...] = normal(E, seed=4)
    x, valid = normal(B, N, E), mask()
    structure, state = nnx.split(made)

    @jax.jit
    def whole(state, x, valid):
        layer = nnx.merge(structure, state)
        cache = layer.init_cache(B, N)
        first, cache = layer.prefill(x[:, :5], cache, valid[:, :5])
        outputs = [first]
        for start in range(5, N, 2):
            y, cache = layer.step(x[:, start : start + 2], cache, valid[:, start : start + 2])
            outputs.append(y)
        return jnp.concatenate(outputs, 1), cache["count"]

    out, count = whole(state, x, valid)
    np.testing.assert_array_equal(count, valid.sum(1))
    # Padding takes no place here: each row is as it would be without it.
    for row in range(B):
        alone = run(made, x[row : row + 1, np.asarray(valid[row])])
        np.testing.assert_allclose(out[row, np.asarray(valid[row])], alone[0], atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_across_two_sequences_or_a_refusal(name):
    made = layer(name, causal=not df.parse(name).traits.bidirectional)
    x, context = normal(B, N, E), normal(B, 7, E, seed=2)
    if name not in CROSS:
        with pytest.raises(df.InputError, match="does not work across two sequences"):
            made(x, context)
        return
    exists = mask(length=7)
    out = run(made, x, context, valid=mask(), context_valid=exists)
    assert out.shape == x.shape
    assert not np.asarray(out)[~np.asarray(mask())].any()
    # Padding of the context is as if it were not there.
    for row in range(B):
        kept = context[row : row + 1, np.asarray(exists[row])]
        alone = run(made, x[row : row + 1], kept, valid=mask()[row : row + 1])
        np.testing.assert_allclose(out[row : row + 1], alone, atol=1e-5)
    # A copy of x as a context is x itself.
    again = run(made, x, x + 0.0, valid=mask(), context_valid=mask())
    np.testing.assert_allclose(again, run(made, x, valid=mask()), atol=1e-5)


def naive(name, q, k, v):
    """The definition across two sequences, from the papers' equations; `[B, H, N, D]`."""
    if name == "full":
        scores = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(D)
        weights = np.exp(scores)
    elif name == "linear":
        phi_q, phi_k = (np.where(a > 0, a + 1, np.exp(np.minimum(a, 0))) for a in (q, k))
        weights = np.einsum("bnhd,bmhd->bhnm", phi_q, phi_k)
    else:
        weights = np.ones((B, H, q.shape[1], k.shape[1]))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bmhd->bnhd", weights, v)


@pytest.mark.parametrize("name", ["full", "linear", "uniform"])
def test_across_two_sequences_as_defined(name):
    made = layer(name)
    x, keys, values = normal(B, N, E), normal(B, 7, E, seed=2), normal(B, 7, E, seed=3)
    p = made.heads.projections[0]
    q, k, v = (
        np.einsum("bne,ehd->bnhd", np.asarray(a, np.float64), np.asarray(w[...]))
        for a, w in ((x, p.q), (keys, p.k), (values, p.v))
    )
    expected = np.einsum("bnhd,hde->bne", naive(name, q, k, v), np.asarray(p.o[...]))
    np.testing.assert_allclose(run(made, x, keys, values), expected, atol=1e-5)


def test_the_place_of_nnx_multi_head_attention():
    """The same outputs with its weights, alone and across two sequences, and with its masks."""
    theirs = nnx.MultiHeadAttention(H, E, num_kv_heads=2, decode=False, rngs=nnx.Rngs(3))
    theirs.query.bias[...] = normal(H, D)
    theirs.out.bias[...] = normal(E)
    ours = layer("full", kv_heads=2, qkv_bias=True, out_bias=True)
    ours.copy_from(theirs)
    x, context = normal(B, N, E), normal(B, 7, E, seed=2)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    np.testing.assert_allclose(ours(x, x), theirs(x, x), atol=1e-5)
    np.testing.assert_allclose(ours(x, context), theirs(x, context), atol=1e-5)
    values = context * 2
    np.testing.assert_allclose(ours(x, context, values), theirs(x, context, values), atol=1e-5)
    exists = nnx.make_attention_mask(jnp.ones((B, 1)), mask(length=7))  # [B, 1, 1, 7]
    np.testing.assert_allclose(
        ours(x, context, mask=exists), theirs(x, context, mask=exists), atol=1e-5
    )
    np.testing.assert_allclose(ours(x, causal=True), theirs(x, is_causal=True), atol=1e-5)
    # Any leading axes, as theirs.
    many = normal(2, 3, N, E)
    np.testing.assert_allclose(ours(many), theirs(many), atol=1e-5)
    with pytest.raises(df.InputError, match="mask must say which keys exist"):
        ours(x, mask=nnx.make_causal_mask(x[..., 0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 2}, "the queries of the layer are"),
        ({"use_bias": True}, "has biases"),
        ({"normalize_qk": True}, "LayerNorm"),
    ],
)
def test_weights_that_have_no_place(options, message):
    options = {"heads": H, "use_bias": False, **options}
    theirs = nnx.MultiHeadAttention(
        options.pop("heads"), E, decode=False, **options, rngs=nnx.Rngs(0)
    )
    with pytest.raises(df.InputError, match=message):
        layer("full").copy_from(theirs)


def test_rotary_and_alibi():
    x = normal(B, N, E)
    made = layer("full", positions="rotary", causal=True)
    p = made.heads.projections[0]
    q, k, v = (jnp.einsum("bne,ehd->bnhd", x, w[...]) for w in (p.q, p.k, p.v))
    y = df.parse("full")({}, Inputs(rotate(q), rotate(k), v), causal=True)
    np.testing.assert_allclose(made(x), jnp.einsum("bnhd,hde->bne", y, p.o[...]), atol=1e-5)
    plain, alibi = layer("full"), layer("full", positions="alibi")
    assert abs(plain(x) - alibi(x)).max() > 1e-3
    for positions in ("rotary", "alibi"):
        with pytest.raises(df.InputError, match="do not work across two sequences"):
            layer("full", positions=positions)(x, normal(B, 7, E))
    # Decoding turns by the same table.
    cache = made.init_cache(B, N)
    outputs = []
    for n in range(N):
        y, cache = made.step(x[:, n : n + 1], cache)
        outputs.append(y)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), made(x), atol=1e-5)
    with pytest.raises(df.InputError, match="needs max_length=13"):
        made.init_cache(B, N + 1)


def test_dropout_is_of_training_alone_and_from_the_streams_of_nnx():
    made = df.nn.Attention("full", E, H, dropout=0.5, rngs=nnx.Rngs(0, dropout=1))
    x = normal(B, N, E)
    assert abs(made(x) - made(x)).max() > 1e-3
    same = [made(x, rngs=nnx.Rngs(dropout=5)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    np.testing.assert_array_equal(made(x, deterministic=True), made(x, deterministic=True))
    made.eval()
    np.testing.assert_array_equal(made(x), made(x))
    made.train()
    assert abs(made(x) - made(x)).max() > 1e-3


def test_a_row_of_a_genotype():
    row = ("full", "performer", "full", "local(window=2)")
    made = layer(row)
    x = normal(B, N, E)
    assert df.attention.to_text(made.row[3]) == "local(window=2)"
    for head, name in enumerate(row):
        alone = layer(name)
        alone.heads.projections[0] = made.heads.projections[0]
        if made.number is not None and alone.number is not None:
            alone.number = made.number
        kept = jnp.zeros((H, D, E)).at[head].set(made.heads.projections[0].o[head])
        one = nnx.clone(alone)
        one.heads.projections[0].o[...] = kept
        of_head = nnx.clone(made)
        of_head.heads.projections[0].o[...] = kept
        np.testing.assert_allclose(of_head(x), one(x), atol=1e-5)
    with pytest.raises(df.InputError, match="the row has 2 attentions"):
        layer(("full", "linear"))


@pytest.mark.parametrize("projections", ["shared", "separate"])
def test_a_one_hot_mixture_is_the_plain_layer(projections):
    names = ["full", "linear", "performer", "gated_linear", "local(window=2)"]
    mixed = df.nn.MixedAttention(
        names, E, H, projections=projections, out_bias=True, rngs=nnx.Rngs(0)
    )
    mixed.out_bias[...] = normal(E)
    assert mixed.mixture.shape == (H, len(names))
    x, valid = normal(B, N, E), mask()
    uniform = mixed(x, valid=valid)
    row = ("linear", "performer", "gated_linear", "linear")
    choice = jnp.array([names.index(name) for name in row])
    mixed.mixture[...] = jax.nn.one_hot(choice, len(names))
    plain = mixed.plain(row)
    np.testing.assert_allclose(mixed(x, valid=valid), plain(x, valid=valid), atol=1e-5)
    assert abs(uniform - mixed(x, valid=valid)).max() > 1e-3
    # Across two sequences with candidates that can.
    names = ["full", "linear"]
    mixed = df.nn.MixedAttention(names, E, H, projections=projections, rngs=nnx.Rngs(0))
    context = normal(B, 7, E, seed=2)
    options = {"valid": valid, "context_valid": mask(length=7)}
    mixed.mixture[...] = jax.nn.one_hot(jnp.array([0, 1, 1, 0]), 2)
    plain = mixed.plain(("full", "linear", "linear", "full"))
    np.testing.assert_allclose(
        mixed(x, context, **options), plain(x, context, **options), atol=1e-5
    )


def test_only_active_candidates_are_computed():
    """The mixture decides at run time: one program, and the time of the rest is saved."""
    mixed = df.nn.MixedAttention(["full", "linear"], E, H, rngs=nnx.Rngs(0))
    structure, state = nnx.split(mixed)
    text = str(jax.make_jaxpr(lambda s, x: nnx.merge(structure, s)(x))(state, normal(B, N, E)))
    assert text.count("cond[") == 2


def test_a_gradient_reaches_the_mixture_and_an_optimizer_of_parameters_does_not():
    mixed = df.nn.MixedAttention(["full", "uniform"], E, H, rngs=nnx.Rngs(0))
    x = normal(B, N, E)
    state = nnx.state(mixed, df.nn.Mixture)
    assert jax.tree.leaves(state)[0].shape == (H, 2)
    gradient = nnx.grad(lambda m: (m(x) ** 2).sum(), argnums=nnx.DiffState(0, df.nn.Mixture))(mixed)
    assert np.asarray(jax.tree.leaves(gradient)[0]).any()
    assert not jax.tree.leaves(nnx.state(nnx.state(mixed, nnx.Param), df.nn.Mixture))


def test_layers_draw_different_features():
    rngs = nnx.Rngs(0)
    first, second = (df.nn.Attention("performer", E, H, rngs=rngs) for _ in range(2))
    assert first.number[...] != second.number[...]


def test_in_a_linen_model():
    module = bridge.ToLinen(
        df.nn.Attention, args=("local(window=2)", E, H), kwargs={"dropout": 0.1}
    )
    x = normal(B, N, E)
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
    rngs = {"dropout": jax.random.key(2)}
    out = module.apply(variables, x, rngs=rngs)
    assert out.shape == x.shape
    quiet = module.apply(variables, x, deterministic=True)
    np.testing.assert_array_equal(quiet, module.apply(variables, x, deterministic=True))
    assert abs(out - quiet).max() > 1e-4


def test_bfloat16():
    made = layer("full", dtype=jnp.bfloat16)
    assert made(normal(B, N, E)).dtype == jnp.bfloat16
    assert made.heads.projections[0].q.dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layer("fulll"), "did you mean 'full'|full"),
        (lambda: df.nn.Attention("full", 15, 4, rngs=nnx.Rngs(0)), "must be a multiple of heads=4"),
        (lambda: df.nn.Attention("linformer", E, H, rngs=nnx.Rngs(0)), "Set max_length"),
        (lambda: layer("fourier", causal=True), "does not work with a causal task"),
        (lambda: layer("linear", positions="rotary"), "does not work with rotary positions"),
        (lambda: layer("full", positions="learned"), "positions"),
        (lambda: layer("full", kv_heads=3), "kv_heads must divide heads = 4"),
        (lambda: layer("full", dropout=1.5), "^dropout must be at least 0"),
        (lambda: layer("full", depth=2), "option"),
        (lambda: df.nn.MixedAttention("full", E, H, rngs=nnx.Rngs(0)), "must be a list"),
        (lambda: df.nn.MixedAttention(["full"], E, H, rngs=nnx.Rngs(0)), "at least two"),
        (
            lambda: df.nn.MixedAttention(["local", "local(16)"], E, H, rngs=nnx.Rngs(0)),
            "twice",
        ),
        (lambda: layer("full")(normal(B, N, 3)), r"x must be \[..., tokens, 16\]"),
        (lambda: layer("full")(normal(B, N, E), valid=jnp.ones((B, 3))), "valid must be"),
        (lambda: layer("full")(normal(B, N, E), None, normal(B, N, E)), "values need a context"),
        (lambda: layer("full")(normal(B, N, E), normal(1, 7, E)), "context and values must be"),
        (lambda: layer("full", causal=True)(normal(B, N, E), normal(B, 7, E)), "causal=True"),
        (lambda: layer("full").init_cache(B, N), "needs a causal layer"),
        (lambda: layer("linformer")(normal(B, N + 1, E)), "at most 12 tokens"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(df.InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
    assert "model." not in str(error.value)
