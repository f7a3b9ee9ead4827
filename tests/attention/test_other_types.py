"""What is special to the other types.

They are `synthesizer`, `conv`, `fourier`, `differential`, `sinkhorn`, `nystrom` and `reformer`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.accelerators.devices import device_of
from dartformer.attention import Inputs, Shape, parse
from dartformer.attention.conformance.case import quick
from dartformer.attention.reformer import rotations
from dartformer.errors import InputError
from dartformer.kernels.chunked import chunked_attention
from dartformer.kernels.fourier import fourier
from dartformer.kernels.hashed import permute, sort_by_bucket
from dartformer.kernels.low_rank import pseudo_inverse, segments


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("synthesizer(mode='sparse')", "synthesizer: option 'mode' must be 'dense' or"),
        ("synthesizer(mode='random', rank=4)", "mode 'random', which has no rank; got rank=4"),
        ("synthesizer(rank=0)", "synthesizer: rank must be a whole number of at least 1, got 0"),
        (
            "differential(lambda_init=1.0)",
            "lambda_init must be a number of at least 0 and below 1, got 1.0",
        ),
        (
            "differential(lambda_init=-0.1)",
            "lambda_init must be a number of at least 0 and below 1, got -0.1",
        ),
        (
            "linformer(sharing='layer')",
            "linformer: option 'sharing' must be 'none' or 'kv', got 'layer'",
        ),
        ("sinkhorn(block=0)", "sinkhorn: block must be a whole number of at least 1, got 0"),
        (
            "sinkhorn(iterations=0)",
            "sinkhorn: iterations must be a whole number of at least 1, got 0",
        ),
        ("sinkhorn(temperature=0.0)", "sinkhorn: temperature must be a number above 0, got 0.0"),
        ("nystrom(landmarks=0)", "nystrom: landmarks must be a whole number of at least 1, got 0"),
        ("reformer(buckets=5)", "reformer: buckets must be an even number, got 5"),
        ("reformer(hashes=0)", "reformer: hashes must be a whole number of at least 1, got 0"),
        ("reformer(chunk=0)", "reformer: chunk must be a whole number of at least 1, got 0"),
        ("conv(width=0)", "conv: width must be a whole number of at least 1, got 0"),
    ],
)
def test_options_out_of_range(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


def test_synthesizer_must_be_given_what_it_reads():
    q, shape = jnp.ones((1, 6, 2, 4)), Shape(6, 2, 4, 8)
    attention = parse("synthesizer")
    with pytest.raises(
        InputError, match=r"synthesizer\(.*\) reads the layer's input, but inputs.x is None"
    ):
        attention(attention.init(jax.random.key(0), shape), Inputs(q, q, q))
    for mode, reads in (("dense", "vx"), ("random", "v"), ("factorised", "v")):
        assert parse(f"synthesizer(mode='{mode}')").traits.reads == frozenset(reads)


@pytest.mark.parametrize("mode", ["dense", "random", "factorised"])
def test_scores_of_synthesizer_begin_near_one(mode):
    shape = Shape(64, 2, 16, 32)
    attention = parse(f"synthesizer(mode='{mode}')")
    params = attention.init(jax.random.key(0), shape)
    x, v = jax.random.normal(jax.random.key(1), (1, 64, 32)), jnp.ones((1, 64, 2, 16))
    scores = attention._scores(params, Inputs(v, v, v, x), False)
    assert 0.5 < np.std(scores) < 1.5


def test_differential_refuses_an_odd_head_width():
    attention, q = parse("differential"), jnp.ones((1, 6, 2, 3))
    for call in (
        lambda: attention.init(jax.random.key(0), Shape(6, 2, 3, 6)),
        lambda: attention({}, Inputs(q, q, q)),
    ):
        with pytest.raises(
            InputError,
            match=r"differential\(.*\) .* head width of 3 because it needs a multiple of 2",
        ):
            call()


def by_weights(attention, params, inputs, causal):
    """The output by definition: the matrix of weights times v."""
    rows = attention.weights(params, inputs, causal=causal)
    return jnp.einsum("bhnk,bkhd->bnhd", rows, inputs.v)


TPU = device_of("tpu-v5e").target
LONG = 261  # two tiles of queries, which do not divide it


def long_case(attention, heads=2, width=4):
    """`(parameters, Inputs)` of more tokens than a tile, with padding and ALiBi."""
    shape = Shape(LONG, heads, width, heads * width)
    keys = jax.random.split(jax.random.key(3), 5)
    params = attention.init(keys[0], shape)
    q, k, v = (jax.random.normal(key, (2, LONG, heads, width)) for key in keys[1:4])
    x = jax.random.normal(keys[4], (2, LONG, heads * width))
    valid = (jnp.arange(LONG) < jnp.array([LONG, 200])[:, None]).at[0, 3].set(False)
    return params, Inputs(q, k, v, x, valid, slopes=2.0 ** -jnp.arange(1.0, heads + 1))


@pytest.mark.parametrize(
    ("spec", "causal"),
    [
        ("differential", False),
        ("differential", True),
        ("synthesizer", False),
        ("synthesizer", True),
        ("synthesizer(mode='factorised',rank=2)", False),
    ],
)
def test_long_inputs_in_tiles_are_the_definition(spec, causal):
    attention = parse(spec)
    params, inputs = long_case(attention)
    inputs = dataclasses.replace(inputs, target=TPU)

    def results(of):
        def loss(params, q, k, v, x):
            changed = dataclasses.replace(inputs, q=q, k=k, v=v, x=x)
            return (of(attention, params, changed, causal) ** 3).sum()

        arrays = (params, inputs.q, inputs.k, inputs.v, inputs.x)
        return jax.value_and_grad(loss, range(5))(*arrays)

    def fast(attention, params, inputs, causal):
        return attention(params, inputs, causal=causal)

    got, want = quick(lambda: (results(fast), results(by_weights)))()
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5 * max(1, float(np.abs(w).max())))


def test_both_softmaxes_of_long_differential_lose_the_same_keys():
    attention = parse("differential")
    params, inputs = long_case(attention)
    half = inputs.q[..., :2]
    same = jnp.concatenate([half, half], axis=-1)  # so that both softmaxes are equal
    dropped = dataclasses.replace(inputs, q=same, k=same, dropout=0.5)
    key = jax.random.key(7)
    out = attention(params, dropped, train=True, key=key)
    one = chunked_attention(
        half, half, inputs.v, valid=inputs.valid, slopes=inputs.slopes, dropout=0.5, key=key
    )
    share = attention._share(params, jnp.float32).reshape(2, 1)
    want = (one * (1 - share))[inputs.valid]
    np.testing.assert_allclose(out[inputs.valid], want, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 37, 1000])
def test_fourier_of_padded_sequences_is_that_of_each_alone(length):
    """To the last digits of float32 at a length where k^2 pi / n has none left."""
    random = np.random.default_rng(length)
    counts = np.unique(random.integers(1, length + 1, 4))
    z = random.standard_normal((len(counts), length, 3)) + 1j * random.standard_normal(
        (len(counts), length, 3)
    )
    z = z * (np.arange(length) < counts[:, None])[..., None]
    out = np.asarray(quick(fourier)(z.astype(np.complex64), counts))
    for b, n in enumerate(counts):
        expected = np.fft.fft(z[b, :n], axis=0)
        np.testing.assert_allclose(out[b, :n], expected, atol=1e-5 * np.abs(expected).max())


def test_fourier_keeps_the_scale_and_says_what_is_too_long():
    v = jax.random.normal(jax.random.key(0), (1, 64, 2, 8))
    assert np.std(parse("fourier")({}, Inputs(v, v, v))) == pytest.approx(
        float(np.std(v)) * 0.5**0.5, rel=0.1
    )
    v = jax.ShapeDtypeStruct((1, 70_000, 1, 2), jnp.float32)
    valid = jax.ShapeDtypeStruct((1, 70_000), bool)
    jax.eval_shape(lambda v: parse("fourier")({}, Inputs(v, v, v)), v)
    with pytest.raises(
        InputError, match="fourier takes at most 65535 tokens where some may be padding, got 70000"
    ):
        jax.eval_shape(
            lambda v, valid: parse("fourier")({}, Inputs(v, v, v, None, valid)), v, valid
        )


def test_sinkhorn_sorts_blocks():
    """A sort net that permutes: each token sees its own block and the one sorted to it alone."""
    length, block, hot = 12, 3, np.eye(12)
    order = np.array([2, 0, 3, 1])  # block t sees block order[t]
    net = np.zeros((1, 2 * length, 4))
    for t, u in enumerate(order):
        net[0, t * block : (t + 1) * block, u] = 40.0
    q = np.broadcast_to(hot[:, None], (1, length, 1, length)).astype(np.float32)
    out = quick(parse("sinkhorn(block=3, iterations=20, temperature=1.0)"))(
        {"W": net}, Inputs(q, 0 * q, q)
    )
    number = np.arange(length) // block
    expected = (number[:, None] == number) | (order[number][:, None] == number)
    np.testing.assert_allclose(out[0, :, 0], expected / expected.sum(1, keepdims=True), atol=1e-5)


def test_nystrom_is_full_where_tokens_are_no_more_than_landmarks():
    q, k, v = (jax.random.normal(jax.random.key(s), (3, 20, 2, 8)) for s in range(3))
    valid = jnp.arange(20) < jnp.array([[5], [8], [9]])
    inputs = Inputs(q, k, v, None, valid)
    actual, full = (quick(parse(name))({}, inputs) for name in ("nystrom(landmarks=8)", "full"))
    np.testing.assert_allclose(actual[:2], full[:2], atol=1e-6)
    assert np.abs(actual[2] - full[2]).max() > 1e-3
    np.testing.assert_allclose(
        quick(parse("nystrom(landmarks=20)"))({}, Inputs(q, k, v)),
        quick(parse("full"))({}, Inputs(q, k, v)),
        atol=1e-6,
    )


@pytest.mark.parametrize(("length", "count"), [(12, 4), (13, 4), (3, 5), (1, 1)])
def test_segments_are_as_equal_as_can_be_and_padding_is_in_none(length, count):
    x, held = segments([jnp.arange(1.0, length + 1).reshape(1, length, 1, 1)], count, None)
    cuts = np.flatnonzero(np.diff(np.arange(length) * count // length)) + 1
    tokens = np.array_split(np.arange(1.0, length + 1), cuts)
    filled = np.ones(count, bool) if held is None else np.asarray(held)[0]
    np.testing.assert_allclose(np.asarray(x[0]).ravel()[filled], [t.mean() for t in tokens])
    sizes = [len(t) for t in tokens]
    assert max(sizes) - min(sizes) <= 1
    padded = jnp.concatenate(
        [jnp.full((1, 2, 1, 1), 99.0), jnp.arange(1.0, length + 1).reshape(1, length, 1, 1)], 1
    )
    again, present = segments([padded], count, jnp.arange(length + 2)[None] >= 2)
    np.testing.assert_allclose(again[0], x[0], rtol=1e-6)
    np.testing.assert_array_equal(present[0], filled)


def test_the_pseudo_inverse():
    a = jax.nn.softmax(3 * jax.random.normal(jax.random.key(0), (2, 6, 6)))
    np.testing.assert_allclose(pseudo_inverse(a, 12), np.linalg.pinv(a), atol=1e-3)
    assert (pseudo_inverse(jnp.zeros((3, 3)), 6) == 0).all()


def test_reformer_must_be_given_what_it_draws_from():
    q = jnp.ones((1, 60, 2, 4))
    with pytest.raises(InputError, match=r"reformer\(.*\) is random, but inputs.head_keys is None"):
        parse("reformer")({}, Inputs(q, q, q))


def test_rotations_are_those_of_the_head_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    r = rotations(keys, 2, 4, 8)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(
            rotations(keys[np.array([2, 0])], 2, 4, 8), r[np.array([2, 0])]
        )
    assert len(np.unique(r)) == r.size


def test_reformer_finds_equal_tokens_wherever_they_are():
    """Four kinds of tokens, shuffled: each sees its own kind, and others no more than by chance."""
    random = np.random.default_rng(0)
    kind = random.permutation(np.repeat(np.arange(4), 16))
    q = 8 * random.standard_normal((4, 16))[kind][None, :, None] / 4
    rows = parse("reformer(buckets=16, hashes=4, chunk=16)").weights(
        {},
        Inputs(
            *3 * (jnp.asarray(q, jnp.float32),), head_keys=jax.random.split(jax.random.key(1), 1)
        ),
    )[0, 0]
    assert float((rows * (kind == kind[:, None])).sum(1).min()) > 0.9
    assert (np.diag(rows) == 0).all()


@pytest.mark.parametrize("count", [1, 4])
def test_the_order_of_buckets(count):
    bucket = np.random.default_rng(count).integers(0, count + 1, (2, 3, 2, 13))
    actual = sort_by_bucket(jnp.asarray(bucket, jnp.int32), count, 5)
    expected = np.argsort(
        np.pad(bucket, [(0, 0)] * 3 + [(0, 2)], constant_values=count), kind="stable"
    )
    np.testing.assert_array_equal(actual.order, expected)
    np.testing.assert_array_equal(actual.inverse, np.argsort(expected))
    np.testing.assert_array_equal(
        actual.bucket.reshape(expected.shape)[..., :13],
        np.sort(np.pad(bucket, [(0, 0)] * 3 + [(0, 2)], constant_values=count))[..., :13],
    )


def test_permuting_has_the_gradients_of_a_gather():
    order = jax.random.permutation(jax.random.key(0), 7)
    x = jax.random.normal(jax.random.key(1), (7, 3))

    def loss(take):
        return lambda x: jnp.sum(take(x) ** 3 * jnp.arange(21.0).reshape(7, 3))

    ours, plain = loss(lambda x: permute(x, order, jnp.argsort(order))), loss(lambda x: x[order])
    np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(plain)(x), rtol=1e-6)
    for second in (
        lambda f: jax.jvp(jax.grad(f), (x,), (x,))[1],
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2))(x),
    ):
        np.testing.assert_allclose(second(ours), second(plain), rtol=1e-5)
