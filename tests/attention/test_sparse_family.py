"""The exact set that each token sees in `block`, `sink`, `sparse`, `longformer` and `bigbird`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import Inputs, Shape, parse
from dartformer.attention.bigbird import random_blocks
from dartformer.attention.conformance.case import quick
from dartformer.errors import InputError

H = 2


def reach(attention, length, valid, causal):
    """What the fast path weighs, `[B, H, N, N]` bool, read off values that are one-hot.

    For `longformer` those of x and W_v.
    """
    random = np.random.default_rng(length)
    batch, hot = len(valid), np.eye(length)
    q, k = random.standard_normal((2, batch, length, H, 4))
    params = {name: random.standard_normal((H, length, 4)) for name in ("W_q", "W_k")}
    params["W_v"] = np.broadcast_to(hot, (H, length, length))
    v = np.broadcast_to(hot[:, None], (batch, length, H, length))
    x, keys = np.broadcast_to(hot, (batch, length, length)), jax.random.split(jax.random.key(5), H)
    inputs = Inputs(q, k, v, x, valid, keys)
    out = quick(lambda p, i: attention(p, i, causal=causal))(params, inputs)
    return np.asarray(out).transpose(0, 2, 1, 3) > 0


def near(i, j, o):
    return abs(i - j) <= o.window


def block(i, j, o, n):
    return i // o.size == j // o.size


def sink(i, j, o, n):
    return near(i, j, o) or j < o.sinks


def sparse(i, j, o, n):
    if o.pattern == "fixed":
        return i // o.stride == j // o.stride or j % o.stride in range(
            o.stride - o.columns, o.stride
        )
    return abs(i - j) <= o.stride or (i - j) % o.stride == 0


def longformer(i, j, o, n):
    return near(i, j, o) or j < o.globals or i < o.globals


CASES = [
    ("block(size=5)", block),
    ("sink(window=3, sinks=2)", sink),
    ("sink(window=40, sinks=3)", sink),
    ("sparse(stride=6, summary=2)", sparse),
    ("sparse(stride=7, pattern='strided')", sparse),
    ("longformer(window=4, globals=3)", longformer),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("spec", "rule"), CASES)
def test_the_exact_set(spec, rule, causal):
    attention = parse(spec)
    random = np.random.default_rng(len(spec))
    for length in (2, *random.integers(9, 60, 2), 48):
        valid = random.random((2, length)) < 0.8
        expected = np.array(
            [
                [rule(i, j, attention, length) and (j <= i or not causal) for j in range(length)]
                for i in range(length)
            ]
        )
        expected = expected & valid[:, None, None, :] & valid[:, None, :, None]
        np.testing.assert_array_equal(
            reach(attention, length, valid, causal),
            np.broadcast_to(expected, (2, H, length, length)),
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("block", "randoms", "globals_", "length"),
    [(3, 2, 1, 40), (2, 1, 2, 33), (4, 3, 1, 64), (5, 9, 1, 55), (8, 2, 1, 7)],
)
def test_the_exact_set_of_bigbird(block, randoms, globals_, length, causal):
    attention = parse(f"bigbird(block={block}, randoms={randoms}, globals={globals_})")
    valid = np.random.default_rng(length).random((3, length)) < 0.8
    valid[0], valid[1, length // 2 :], valid[2, -1] = True, False, True
    actual = reach(attention, length, valid, causal)
    number = np.arange(length) // block
    t, u = number[:, None], number
    for b in range(3):
        count = number[valid[b]].max() + 1  # blocks that the example has
        pair = valid[b] & valid[b][:, None] & (np.tri(length, dtype=bool) if causal else True)
        always = (abs(t - u) <= 1) | (u < globals_)
        if not causal:
            always = always | (t < globals_) | (u >= count - globals_) | (t >= count - globals_)
        for h in range(H):
            drawn = np.zeros((count, count), bool)
            drawn[tuple(np.argwhere(actual[b, h] & ~always).T // block)] = True
            np.testing.assert_array_equal(
                actual[b, h], pair & (always | np.pad(drawn, (0, 99))[t, u])
            )  # whole blocks
            for row in range(count):
                among = (
                    {*range(globals_, row - 1)}
                    if causal
                    else {*range(globals_, count - globals_)} - {row - 1, row, row + 1}
                )
                if not causal and not globals_ <= row < count - globals_:
                    among = set()
                assert drawn[row].sum() <= min(randoms, len(among))
                if b == 0:
                    assert drawn[row].sum() == min(randoms, len(among))
    everything = (actual[0, 0] == (np.tri(length, dtype=bool) if causal else True)).all()
    assert attention.sees_all(length, causal=causal) == everything


def graph(heads, blocks, stop, count=2, start=1, seed=0):
    keys = jax.random.split(jax.random.key(seed), heads)
    return np.asarray(
        quick(lambda keys, stop: random_blocks(keys, blocks, start, stop, count))(keys, stop)
    )


def test_random_blocks_are_different_ones_of_those_allowed():
    for blocks, count in ((12, 3), (7, 2), (7, 5), (3, 1)):
        ids = graph(20, blocks, np.array([[blocks - 1]]), count)
        for h, t in np.ndindex(20, blocks):
            allowed = set(range(1, blocks - 1)) - {t - 1, t, t + 1}
            chosen = [u for u in ids[0, h, t] if u >= 0]
            assert len(chosen) == len(set(chosen)) == min(count, len(allowed))
            assert set(chosen) <= allowed


def test_every_set_of_random_blocks_is_as_likely():
    ids = np.sort(
        graph(3000, 8, np.array([[7]]))[0, :, 0], axis=-1
    )  # block 0 may draw 2 of {2, ..., 6}
    pairs = {pair: (ids == pair).all(-1).mean() for pair in itertools.combinations(range(2, 7), 2)}
    assert sum(pairs.values()) == pytest.approx(1)
    for share in pairs.values():
        assert share == pytest.approx(0.1, abs=5 * (0.09 / 3000) ** 0.5)


def test_the_graph_is_that_of_head_block_and_length_only():
    short = graph(3, 9, np.array([[8]]))
    np.testing.assert_array_equal(short, graph(3, 9, np.array([[8]])))
    padded = graph(3, 30, np.array([[8], [20]]))  # a batch padded to 30 blocks, of 9 and 21
    np.testing.assert_array_equal(short[0], padded[0, :, :9])
    with jax.enable_x64(True):
        np.testing.assert_array_equal(short, graph(3, 9, np.array([[8]])))
    keys = jax.random.split(jax.random.key(0), 3)[
        np.array([2, 0])
    ]  # heads regrouped, as in a derived model
    np.testing.assert_array_equal(short[:, [2, 0]], random_blocks(keys, 9, 1, np.array([[8]]), 2))
    assert (short[0, 0] != short[0, 1]).any()
    assert (short != graph(3, 9, np.array([[8]]), seed=1)).any()
    causal = graph(3, 9, np.arange(9)[None] - 1)  # the past only: no row depends on how many follow
    np.testing.assert_array_equal(causal, graph(3, 30, np.arange(30)[None] - 1)[:, :, :9])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("block(size=0)", "block: size must be a whole number of at least 1, got 0"),
        ("sink(sinks=0)", "sink: sinks must be a whole number of at least 1, got 0"),
        ("sink(window=0)", "sink: window must be"),
        ("sparse(stride=0)", "sparse: stride must be"),
        ("sparse(summary=0)", "sparse: summary must be a whole number of at least 1, got 0"),
        ("sparse(stride=4, summary=5)", "sparse: summary must be at most the stride, 4, got 5"),
        ("sparse(summary=2, pattern='strided')", "'strided', which has none; got summary=2"),
        ("sparse(pattern='dilated')", "must be 'fixed' or 'strided', got 'dilated'"),
        ("longformer(globals=0)", "longformer: globals must be"),
        ("bigbird(randoms=0)", "bigbird: randoms must be"),
        ("bigbird(globals=-1)", "bigbird: globals must be"),
    ],
)
def test_options_out_of_range(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


def test_what_it_reads_must_be_given():
    q = jnp.ones((1, 60, H, 4))
    with pytest.raises(InputError, match=r"bigbird\(.*\) is random, but inputs.head_keys is None"):
        parse("bigbird")({}, Inputs(q, q, q))
    attention = parse("longformer")
    with pytest.raises(
        InputError, match=r"longformer\(.*\) reads the layer's input, but inputs.x is None"
    ):
        attention(attention.init(jax.random.key(0), Shape(60, H, 4, 8)), Inputs(q, q, q))


def test_the_cost_is_that_of_what_is_computed():
    def flops(spec, length):
        return parse(spec).cost(Shape(length, 4, 32, 128)).flops

    for spec in (
        "block(size=64)",
        "sink(window=64)",
        "longformer(window=64)",
        "bigbird(block=64, randoms=3)",
    ):
        assert flops(spec, 8192) == pytest.approx(2 * flops(spec, 4096), rel=0.01)
        assert flops("full", 4096) > 5 * flops(spec, 4096)
    for option in ("summary=1", "pattern='strided'"):  # N sqrt(N) where the stride is sqrt(N)
        small, large = (flops(f"sparse(stride={n}, {option})", n**2) for n in (32, 64))
        assert large == pytest.approx(8 * small, rel=0.1)
    assert flops("bigbird(block=64, randoms=3)", 400) == pytest.approx(flops("full", 400), rel=0.01)
    shape = Shape(4096, 4, 32, 128)
    assert parse("block(size=64)").cost(shape).state_bytes == 2 * 64 * 128 * 4
    assert parse("sink(window=64, sinks=4)").cost(shape).state_bytes == 2 * 69 * 128 * 4
    assert parse("longformer(globals=2)").cost(shape).parameters == 3 * 4 * 128 * 32
