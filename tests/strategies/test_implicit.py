"""Implicit gradients against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.errors import InputError
from dartformer.strategies.hypergradients.implicit import ConjugateGradient, Neumann


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


RNG = np.random.default_rng(0)
N, M = 6, 4
ROOT = RNG.standard_normal((N, N))
H = ROOT @ ROOT.T / N + np.eye(N)
CROSS, GOAL = RNG.standard_normal((N, M)), RNG.standard_normal(N)
W, A = RNG.standard_normal(N), RNG.standard_normal(M)


def lower(w, a):
    """Its Hessian is H, and the derivative of its gradient by the alphas is CROSS."""
    w = jnp.concatenate([w["x"], w["y"]])
    return 0.5 * w @ H @ w + w @ CROSS @ a, {}


def upper(w, a):
    w = jnp.concatenate([w["x"], w["y"]])
    return 0.5 * jnp.sum((w - GOAL) ** 2) + jnp.sum(a**2), {"said": a[0]}


def gradient(hypergradient, w=W):
    return hypergradient(
        lower, upper, None, {"x": jnp.array(w[:2]), "y": jnp.array(w[2:])}, jnp.array(A)
    )


def want(solution):
    return 2 * A - CROSS.T @ solution


def test_conjugate_gradient_is_exact_in_as_many_terms_as_weights():
    found = gradient(ConjugateGradient(terms=N, damping=0.0))
    np.testing.assert_allclose(found.gradient, want(np.linalg.solve(H, W - GOAL)), rtol=1e-8)
    np.testing.assert_allclose(found.loss, upper({"x": W[:2], "y": W[2:]}, A)[0])
    assert found.metrics.keys() == {"said"}
    again = gradient(
        ConjugateGradient(terms=5 * N, damping=0.0)
    ).gradient  # residuals of rounding do no harm
    np.testing.assert_allclose(again, found.gradient, rtol=1e-8)
    damped = gradient(ConjugateGradient(terms=N, damping=0.7)).gradient
    np.testing.assert_allclose(
        damped, want(np.linalg.solve(H + 0.7 * np.eye(N), W - GOAL)), rtol=1e-8
    )


@pytest.mark.parametrize("terms", [0, 3, 400])
def test_neumann_is_its_series(terms):
    rate = 1 / np.linalg.eigvalsh(H)[-1]
    step, power, total = np.eye(N) - rate * H, W - GOAL, 0
    for _ in range(terms + 1):
        total, power = total + rate * power, step @ power
    np.testing.assert_allclose(
        gradient(Neumann(terms=terms, rate=float(rate))).gradient, want(total), rtol=1e-8
    )
    if terms == 400:
        np.testing.assert_allclose(total, np.linalg.solve(H, W - GOAL), rtol=1e-6)


def test_gradient_of_the_answered_loss():
    """At the weights' minimum it is the derivative of a -> L_v(w*(a), a), by differences."""
    answer = -np.linalg.solve(H, CROSS @ A)
    found = gradient(ConjugateGradient(terms=N, damping=0.0), answer).gradient

    def answered(a):
        w = -np.linalg.solve(H, CROSS @ a)
        return 0.5 * np.sum((w - GOAL) ** 2) + np.sum(a**2)

    for i in range(M):
        e = 1e-6 * np.eye(M)[i]
        np.testing.assert_allclose((answered(A + e) - answered(A - e)) / 2e-6, found[i], rtol=1e-6)


@pytest.mark.parametrize(
    "hypergradient", [Neumann(terms=40, rate=0.25), ConjugateGradient(damping=0.0)]
)
def test_toy_of_the_darts_paper_reaches_the_true_optimum(hypergradient):
    """Figure 2 of 1806.09055: (1, 1), where first order ends at (2, 2)."""

    def toy_upper(w, a):
        return a * w - 2 * a + 1, {}

    def toy_lower(w, a):
        return w**2 - 2 * a * w + a**2, {}

    @jax.jit
    def step(state, _):
        w, a = state
        a = a - 0.05 * hypergradient(toy_lower, toy_upper, None, w, a).gradient
        return (w - 0.05 * jax.grad(lambda w: toy_lower(w, a)[0])(w), a), None

    (w, a), _ = jax.lax.scan(step, (jnp.array(-2.0), jnp.array(2.0)), None, length=3000)
    np.testing.assert_allclose([w, a], 1, atol=1e-6)


def test_a_direction_of_no_curvature_ends_the_iteration():
    flat = ConjugateGradient(terms=8, damping=0.0)
    found = flat(
        lambda w, a: (-jnp.sum(w**2) * a, {}),
        lambda w, a: (jnp.sum(w) + a, {}),
        None,
        jnp.ones(3),
        jnp.array(1.0),
    )
    np.testing.assert_allclose(found.gradient, 1)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Neumann, {"terms": -1}, "at least 0, got -1"),
        (Neumann, {"rate": 0.0}, "above 0"),
        (ConjugateGradient, {"terms": 0}, "at least 1"),
        (ConjugateGradient, {"damping": -0.1}, "at least 0"),
    ],
)
def test_bad_options(cls, options, message):
    with pytest.raises(InputError, match=message):
        cls(**options)
