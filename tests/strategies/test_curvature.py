"""Lanczos against the dense Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.strategies.curvature import dominant_eigenvalue, eigenvalues

KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def quadratic(spectrum, seed=0):
    """The gradient of a quadratic with a known spectrum, over alphas [2, 3, n/6]."""
    n = len(spectrum)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    hessian = jnp.asarray(q * spectrum @ q.T)
    return lambda a: (hessian @ a.reshape(-1)).reshape(a.shape), jnp.ones((2, 3, n // 6))


@pytest.mark.parametrize(
    "spectrum",
    [
        np.linspace(-2, 5, 24),
        np.full(12, 3.0),
        np.linspace(-5, -1, 12),
        np.zeros(12),
        np.repeat([-1.0, 0.0, 2.0], 8),
        1e-6 * np.arange(18),
    ],
)
def test_all_eigenvalues_of_a_quadratic(spectrum):
    gradient, alphas = quadratic(spectrum)
    found = jax.jit(lambda a: eigenvalues(gradient, a, KEY, 100))(alphas)
    np.testing.assert_allclose(found, np.sort(spectrum), atol=1e-10)


def test_few_iterations_find_the_ends():
    spectrum = np.concatenate([np.random.default_rng(1).uniform(-1, 1, 94), [-3, 7]])
    gradient, alphas = quadratic(spectrum)
    found = eigenvalues(gradient, alphas, KEY, 12)
    assert found.shape == (12,)
    np.testing.assert_allclose(np.asarray(found)[[0, -1]], [-3, 7], rtol=1e-4)
    assert found[1] >= -1.0001  # the end appears once
    np.testing.assert_allclose(dominant_eigenvalue(gradient, alphas, KEY), 7, rtol=1e-9)


@pytest.mark.parametrize("double", [True, False])
def test_dense_hessian_of_a_loss_over_softmax(double):
    dtype = jnp.float64 if double else jnp.float32
    keys = jax.random.split(KEY, 3)
    x, w = (jax.random.normal(k, (5, 4), dtype) for k in keys[:2])
    alphas = jax.random.normal(keys[2], (2, 2, 4), dtype)

    def loss(a):
        return jnp.sum(jnp.tanh(jnp.einsum("lhk,nk->n", jax.nn.softmax(a, -1), x) @ w) ** 2)

    dense = jax.hessian(loss)(alphas).reshape(16, 16)
    tolerance = 1e-10 if double else 1e-4
    found = eigenvalues(jax.grad(loss), alphas, KEY, 16)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.linalg.eigvalsh(dense), atol=tolerance)
    np.testing.assert_allclose(
        dominant_eigenvalue(jax.grad(loss), alphas, KEY, 10),
        np.linalg.eigvalsh(dense)[-1],
        rtol=1e-6 if double else 1e-3,
    )
