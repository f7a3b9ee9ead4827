"""The chunked recurrences against their definition, one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention.conformance.case import quick
from dartformer.kernels.decay_scan import decay_scan
from dartformer.kernels.delta_scan import delta_scan, unit_triangular_inverse
from dartformer.kernels.gated_scan import gated_scan
from dartformer.kernels.recurrence import recurrence


def arrays(length, channels, scale=1.0):
    """q, k, v, log-decays (and beta), which tokens are valid, and a cotangent."""
    random = np.random.default_rng(length)
    q, k = (random.standard_normal((2, length, 3, 4)) for _ in range(2))
    v, c = (random.standard_normal((2, length, 3, 5)) for _ in range(2))
    g = -scale * random.exponential(size=(2, length, 3, 4)[: 3 + channels])
    valid = random.random((2, length)) < 0.7
    valid[1, :3] = False
    return [jnp.asarray(x) for x in (q, k, v, g, valid, c)]


def agree(ours, length, channels, causal, scale=1.0, delta=False):
    """Outputs and gradients of `ours` are those of the definition."""
    with jax.enable_x64(True):
        q, k, v, g, valid, c = arrays(length, channels, scale)
        beta = []
        if delta:
            beta = [jax.nn.sigmoid(q[..., 0] * v[..., 1])]
            k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)

        def output_and_gradients(f):
            def run(q, k, v, g, *beta):
                if not beta:
                    return f(q, k, v, g, causal=causal, valid=valid)
                return f(q, k, v, g, beta=beta[0], causal=causal, valid=valid)

            out, pull = jax.vjp(run, q, k, v, g, *beta)
            return out, *pull(c)

        pair = quick(lambda: (output_and_gradients(ours), output_and_gradients(recurrence)))
        actuals, expecteds = pair()
        for actual, expected in zip(actuals, expecteds, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-11)


BOTH = pytest.mark.parametrize("causal", [False, True])
LENGTHS = pytest.mark.parametrize("length", [37, 1])


@BOTH
@LENGTHS
def test_a_decay_of_each_token(length, causal):
    agree(lambda *a, **o: decay_scan(*a, chunk=16, **o), length, False, causal)


@BOTH
@LENGTHS
def test_a_decay_of_each_channel(length, causal):
    agree(lambda *a, **o: gated_scan(*a, chunk=16, leaf=2, **o), length, True, causal)


@BOTH
@LENGTHS
def test_the_delta_rule(length, causal):
    agree(lambda *a, **o: delta_scan(*a, chunk=16, **o), length, False, causal, delta=True)


def test_decays_that_would_overflow_if_divided():
    """Sums of log-decays of some hundreds within a chunk."""
    agree(lambda *a, **o: gated_scan(*a, chunk=16, leaf=2, **o), 37, True, False, scale=100.0)


@pytest.mark.parametrize("scan", [decay_scan, gated_scan, delta_scan])
def test_strong_decays_leave_finite_gradients_in_float32(scan):
    q, k, v, g, _, c = (x.astype(jnp.float32) for x in arrays(37, scan is gated_scan, 100.0))
    beta = [jnp.full(q.shape[:3], 0.5)] if scan is delta_scan else []
    loss = quick(
        jax.value_and_grad(
            lambda *a: jnp.sum(c * scan(*a, causal=True, chunk=16)), argnums=(0, 1, 2, 3)
        )
    )
    value, grads = loss(q, k / jnp.linalg.norm(k, axis=-1, keepdims=True), v, g, *beta)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(x).all() for x in grads)


@pytest.mark.parametrize("size", [1, 2, 32])
def test_the_inverse_of_a_unit_triangle(size):
    """Also where all keys are the same, so that the terms of the series are largest, in float32."""
    lower = np.tril(np.random.default_rng(size).standard_normal((3, size, size)), -1)
    with jax.enable_x64(True):
        actual = np.asarray(unit_triangular_inverse(jnp.asarray(lower)))
    np.testing.assert_allclose(
        actual @ (np.eye(size) + lower), np.broadcast_to(np.eye(size), lower.shape), atol=1e-9
    )
    dense = np.tril(np.ones((size, size), np.float32), -1)
    exact = np.linalg.inv(np.eye(size) + dense)
    np.testing.assert_allclose(unit_triangular_inverse(jnp.asarray(dense)), exact, atol=1e-5)
