"""The window with learned features: a double loop, what cancels, and long texts token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import Inputs, Shape, parse
from dartformer.attention.conformance.case import quick

LENGTH, HEADS, WIDTH = 150, 2, 4
"""Several chunks of the recurrence and several tiles of the window."""


def example(seed=0):
    random = np.random.default_rng(seed)
    q, k, v = random.standard_normal((3, 2, LENGTH, HEADS, WIDTH))
    valid = np.ones((2, LENGTH), bool)
    valid[1, :20] = valid[1, 70:75] = valid[1, -9:] = False
    return q, k, v, valid


def parameters(attention, seed=0):
    params = attention.init(jax.random.key(seed), Shape(LENGTH, HEADS, WIDTH, 8))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.asarray(p) + random.standard_normal(p.shape), params)


def phi(x):
    up, down = np.exp(x - x.max()), np.exp(x.min() - x)
    return np.concatenate([up / up.sum(), down / down.sum()])


def by_hand(attention, params, q, k, v, valid, causal):
    """Each output from the definition, in float64."""
    out = np.zeros_like(v)
    for h in range(HEADS):
        g = 1 / (1 + np.exp(-params["window"][h]))
        for b in range(len(q)):
            features_q = [phi(x @ params["W_q"][h]) for x in q[b, :, h]]
            features_k = [phi(x @ params["W_k"][h]) for x in k[b, :, h]]
            for i in np.flatnonzero(valid[b]):
                weights = np.zeros(LENGTH)
                for j in np.flatnonzero(valid[b]):
                    if causal and j > i:
                        continue
                    if abs(i - j) <= attention.window:
                        weights[j] = np.exp(q[b, i, h] @ k[b, j, h] / WIDTH**0.5)
                near = weights > 0
                weights = g * weights / weights.sum()
                for j in np.flatnonzero(valid[b] & ~near):
                    if not causal or j < i:
                        weights[j] = features_q[i] @ features_k[j]
                out[b, i, h] = weights @ v[b, :, h] / weights.sum()
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("text", ["window_linear(window=0)", "window_linear(window=9, features=7)"])
def test_a_long_text_is_a_double_loop(text, causal):
    attention = parse(text)
    params = parameters(attention)
    q, k, v, valid = example()
    expected = by_hand(attention, params, q, k, v, valid, causal)
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    run = quick(lambda p, i: attention(p, i, causal=causal))
    out = np.asarray(run(params, Inputs(*arrays, None, jnp.asarray(valid))))
    np.testing.assert_allclose(out, expected, atol=2e-5)
    assert (out[~valid] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_over_everything_is_softmax(causal):
    q, k, v, valid = example()
    inputs = Inputs(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), None, jnp.asarray(valid))
    attention = parse(f"window_linear(window={LENGTH - 1})")
    out = attention(parameters(attention), inputs, causal=causal)
    np.testing.assert_allclose(out, parse("full")({}, inputs, causal=causal), atol=1e-6)


def test_what_softmax_ignores_does_not_move_weight_between_the_parts():
    """The same key added to all keys adds a number to all scores of a query."""
    attention = parse("window_linear(window=5)")
    params = parameters(attention)
    params["W_k"] = np.zeros_like(params["W_k"])  # so that features do not see it
    q, k, v, _ = example()
    out = []
    with jax.enable_x64(True):
        for shift in (0.0, 1.0, 300.0):  # e^300 is no float32
            inputs = Inputs(jnp.asarray(q), jnp.asarray(k + shift), jnp.asarray(v))
            out.append(np.asarray(attention(params, inputs, causal=True)))
    np.testing.assert_allclose(out[1], out[0], atol=1e-10)
    np.testing.assert_allclose(out[2], out[0], atol=1e-8)


def test_scores_of_any_size_leave_the_ratio_alone():
    """In float32, where all scores of a query are near 200 or near -200, and e^200 is infinite."""
    attention = parse("window_linear(window=5)")
    params = jax.tree.map(jnp.asarray, parameters(attention))
    q, k, v, valid = example()
    q = 0.01 * q
    for sign in (200.0, -200.0):
        k_far = k.copy()
        q_far = q.copy()
        q_far[..., 0], k_far[..., 0] = 20.0, sign * WIDTH**0.5 / 20
        params64 = jax.tree.map(np.float64, params)
        expected = by_hand(attention, params64, q_far, k_far, v, valid, True)
        arrays = [jnp.asarray(x, jnp.float32) for x in (q_far, k_far, v)]
        out = attention(params, Inputs(*arrays, None, jnp.asarray(valid)), causal=True)
        np.testing.assert_allclose(out, expected, atol=2e-3)
        assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("window", [0, 5, 40])
def test_a_long_text_continues_from_its_cache(window):
    attention = dataclasses.replace(parse("window_linear"), window=window)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), parameters(attention))
    q, k, v, _ = (jnp.asarray(x, jnp.float32) for x in example())
    expected = attention(params, Inputs(q, k, v), causal=True)
    cache = attention.init_cache(Shape(LENGTH, HEADS, WIDTH, 8, batch=2))
    prompt = Inputs(q[:, :70], k[:, :70], v[:, :70])
    first, cache = attention.prefill(params, prompt, cache)
    parts, start = [first], 70
    step = quick(attention.step)
    for count in (1, 1, 50, 28):
        stop = start + count
        begin = jnp.full(2, start, jnp.int32)
        part = Inputs(q[:, start:stop], k[:, start:stop], v[:, start:stop], start=begin)
        out, cache = step(params, part, cache)
        parts.append(out)
        start = stop
    assert start == LENGTH
    np.testing.assert_allclose(jnp.concatenate(parts, 1), expected, atol=2e-5)


def test_the_start_is_random_features_and_a_tenth_for_the_window():
    attention = parse("window_linear(features=5)")
    params = attention.init(jax.random.key(0), Shape(64, 3, 16, 48))
    assert jax.tree.map(jnp.shape, params) == {
        "W_q": (3, 16, 5),
        "W_k": (3, 16, 5),
        "window": (3,),
    }
    np.testing.assert_allclose(jax.nn.sigmoid(params["window"]), 0.1, rtol=1e-6)
    np.testing.assert_array_equal(params["W_q"], params["W_k"])
    given = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    given(params)  # two arrays, each of which may be given away
