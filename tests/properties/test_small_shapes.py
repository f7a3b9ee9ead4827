"""One example, one number for each head, few tokens: every attention has an output and gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import names, parse
from dartformer.attention.base import Inputs, Shape
from dartformer.attention.conformance.case import quick
from dartformer.errors import InputError


def modes(traits):
    """The values of `causal` that an attention takes."""
    return [False] * traits.bidirectional + [True] * traits.causal


def options_of(name):
    """(length, head width, heads, causal, masked, dtype) for an attention."""
    traits = parse(name).traits
    sizes = itertools.product((1, 2, 3, 7), (1, 2, 3), (1, 2))
    rest = itertools.product(modes(traits), (False, True), ("float32", "bfloat16"))
    everything = []
    for (length, width, heads), options in itertools.product(sizes, list(rest)):
        if width % traits.head_dim_multiple == 0:
            everything.append((length, width, heads, *options))
    return everything


def check_gradient(name, length, width, heads, causal, masked, dtype):
    """Output and gradients of one example are finite."""
    attention = parse(name)
    shape = Shape(length, heads, width, heads * width, itemsize=jnp.dtype(dtype).itemsize)
    random = np.random.default_rng(0)
    params = attention.init(jax.random.key(0), shape)
    q, k, v = jnp.asarray(random.standard_normal((3, 1, length, heads, width)), dtype)
    x = jnp.asarray(random.standard_normal((1, length, heads * width)), dtype)
    valid = None
    if masked:
        valid = jnp.arange(length)[None] < length - 1  # of one token none is left

    def loss(floats):
        params, q, k, v, x = floats
        key = jax.random.key(1)
        inputs = Inputs(q, k, v, x, valid, jax.random.split(key, heads))
        out = attention(params, inputs, causal=causal, train=True, key=key)
        assert out.shape == v.shape
        assert out.dtype == v.dtype
        return jnp.sum(out.astype(jnp.float32) ** 2)

    results = quick(jax.value_and_grad(loss))((params, q, k, v, x))
    for leaf in jax.tree.leaves(results):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


@pytest.mark.parametrize("name", names())
def test_an_attention_of_one_example_has_a_gradient(name):
    """At the least head width and few tokens; the next type has another of the options."""
    options = []
    for option in options_of(name):
        if option[1] == parse(name).traits.head_dim_multiple:
            options.append(option)
    check_gradient(name, *options[29 * names().index(name) % len(options)])


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_an_attention_has_a_gradient_at_every_small_shape(name):
    for options in options_of(name):
        check_gradient(name, *options)


@pytest.mark.parametrize("name", names())
def test_a_head_width_that_does_not_work_is_refused_at_once(name):
    attention = parse(name)
    multiple = attention.traits.head_dim_multiple
    for width in range(1, 9):
        shape, q = Shape(5, 2, width, 2 * width), jnp.ones((1, 5, 2, width))
        if width % multiple == 0:
            jax.eval_shape(lambda shape=shape: attention.init(jax.random.key(0), shape))
            continue
        with pytest.raises(InputError, match=f"head width of {width} .* multiple of {multiple}"):
            attention.init(jax.random.key(0), shape)
        with pytest.raises(InputError, match=f"head width of {width} .* multiple of {multiple}"):
            attention({}, Inputs(q, q, q))
