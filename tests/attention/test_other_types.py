"""What is special to `synthesizer` and `conv`, and to other types that are no softmax over chosen tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import Inputs, Shape, parse
from dartformer.errors import InputError


@pytest.mark.parametrize(("spec", "message"), [
    ("synthesizer(mode='sparse')", "synthesizer: option 'mode' must be 'dense' or"),
    ("synthesizer(mode='random', rank=4)", "mode 'random' has no rank, got rank=4"),
    ("synthesizer(rank=0)", "synthesizer: rank must be a whole number of at least 1, got 0"),
    ("conv(width=0)", "conv: width must be a whole number of at least 1, got 0"),
])
def test_options_out_of_range(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


def test_synthesizer_must_be_given_what_it_reads():
    q, shape = jnp.ones((1, 6, 2, 4)), Shape(6, 2, 4, 8)
    attention = parse("synthesizer")
    with pytest.raises(InputError, match=r"synthesizer\(.*\) reads the layer's input, and inputs.x is None"):
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
