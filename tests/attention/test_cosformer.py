"""What is special to `cosformer`: what M is."""

import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import Inputs, parse
from dartformer.attention.conformance.case import quick
from dartformer.errors import InputError


def output(attention, x, valid=None, causal=False):
    return np.asarray(
        quick(lambda x: attention({}, Inputs(x, x, x, None, valid), causal=causal))(x)
    )


X = np.random.default_rng(0).standard_normal((1, 12, 2, 4)).astype(np.float32)


def test_without_a_horizon_padding_on_either_side_changes_nothing():
    padded = np.concatenate([X[:, :5] * 9, X, X[:, :3] * 9], axis=1)
    valid = np.array([[False] * 5 + [True] * 12 + [False] * 3])
    np.testing.assert_allclose(
        output(parse("cosformer"), padded, valid)[:, 5:17], output(parse("cosformer"), X), atol=1e-6
    )


def test_with_a_horizon_what_follows_changes_nothing_before_it():
    fixed, by_example = parse("cosformer(horizon=12)"), parse("cosformer")
    np.testing.assert_allclose(
        output(fixed, X[:, :7], causal=True), output(fixed, X, causal=True)[:, :7], atol=1e-6
    )
    np.testing.assert_allclose(output(fixed, X), output(by_example, X), atol=1e-6)
    assert (
        abs(
            output(by_example, X[:, :7], causal=True) - output(by_example, X, causal=True)[:, :7]
        ).max()
        > 1e-3
    )


def test_a_horizon_is_checked():
    x = jnp.ones((1, 13, 2, 4))
    with pytest.raises(InputError, match=r"horizon=12.* was built for at most 12 tokens, got 13"):
        parse("cosformer(horizon=12)")({}, Inputs(x, x, x))
    with pytest.raises(
        InputError, match="cosformer: horizon must be a whole number of at least 0, got -1"
    ):
        parse("cosformer(horizon=-1)")
