"""Sinkhorn's normalisation, against the definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.kernels.sinkhorn import sinkhorn


def test_the_definition_with_entries_left_out():
    scores = np.random.default_rng(0).standard_normal((2, 5, 5))
    filled = np.array([[True] * 5, [False, True, True, False, True]])
    keep = filled[:, None] & filled[:, :, None]
    expected = np.exp(scores) * keep
    for _ in range(4):
        for axis in (2, 1):
            expected = expected / np.maximum(expected.sum(axis, keepdims=True), 1e-300)
    with jax.enable_x64(True):
        actual = sinkhorn(jnp.asarray(scores), 4, jnp.asarray(keep))
        np.testing.assert_allclose(actual, expected, atol=1e-12)
        np.testing.assert_allclose(
            sinkhorn(jnp.asarray(scores), 200, jnp.asarray(keep)).sum(2), filled, atol=1e-9
        )


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_finite_whatever_the_scores(size):
    scores = size * jax.random.normal(jax.random.key(0), (6, 6))
    for keep in (None, jnp.zeros((6, 6), bool), jnp.eye(6, dtype=bool)):
        out, slope = jax.value_and_grad(lambda s, keep=keep: (sinkhorn(s, 3, keep) * scores).sum())(
            scores
        )
        assert np.isfinite(out)
        assert np.isfinite(slope).all()
    np.testing.assert_allclose(sinkhorn(scores, 3).sum(0), 1, rtol=1e-5)
