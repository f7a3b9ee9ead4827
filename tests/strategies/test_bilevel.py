"""The upper level's gradient, on problems small enough to know the answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dartformer.strategies.hypergradients import HYPERGRADIENTS
from dartformer.training import optimizer


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def upper(w, a):
    return a * w - 2 * a + 1, {}


def lower(w, a):
    return w**2 - 2 * a * w + a**2, {}


def sgd(xi, w):
    return lambda gradient: w - xi * gradient


@pytest.mark.parametrize("name", ["second", "finite"])
@pytest.mark.parametrize("xi", [0.0, 0.1, 0.25, 0.5])
def test_toy_of_the_darts_paper_reaches_its_fixed_point(name, xi):
    """Figure 2 of 1806.09055: alternating descent ends at 2 / (1 + 2 xi), at xi = 1/2 in the true
    optimum (1, 1)."""
    hypergradient = HYPERGRADIENTS["first" if xi == 0 else name]()

    @jax.jit
    def step(state, _):
        w, a = state
        a = a - 0.05 * hypergradient(lower, upper, sgd(xi, w), w, a).gradient
        return (w - 0.05 * jax.grad(lambda w: lower(w, a)[0])(w), a), None

    (w, a), _ = jax.lax.scan(step, (jnp.array(-2.0), jnp.array(2.0)), None, length=4000)
    np.testing.assert_allclose([w, a], 2 / (1 + 2 * xi), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "xi", "want"),
    [
        ("first", 0.0, -4.0),
        ("second", 0.0, -4.0),
        ("second", 0.1, -2.8),
        ("finite", 0.1, -2.8),
        ("second", 0.5, 2.0),
        ("finite", 0.5, 2.0),  # without the Hessian term this one is 0
    ],
)
def test_first_step_of_the_toy(name, xi, want):
    w, a = jnp.array(-2.0), jnp.array(2.0)
    found = HYPERGRADIENTS[name]()(lower, upper, sgd(xi, w), w, a)
    np.testing.assert_allclose(found.gradient, want, rtol=1e-9)


def _network(seed):
    """A loss with curvature everywhere: two layers of tanh, alphas as a softmax over columns."""
    keys = jax.random.split(jax.random.key(seed), 6)
    weights = {"in": jax.random.normal(keys[0], (5, 6)), "out": jax.random.normal(keys[1], (6, 3))}
    alphas = jax.random.normal(keys[2], (2, 3))

    def loss(x, y, w, a):
        mixed = jnp.tanh(x @ w["in"]) @ w["out"] * jax.nn.softmax(a, -1).sum(0)
        return jnp.mean((mixed - y) ** 2), {"accuracy": jnp.mean(mixed)}

    train, valid = (
        (jax.random.normal(k, (7, 5)), jax.random.normal(jax.random.fold_in(k, 1), (7, 3)))
        for k in keys[3:5]
    )
    return weights, alphas, functools.partial(loss, *train), functools.partial(loss, *valid)


@pytest.mark.parametrize("name", optimizer.NAMES)
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_exact_agrees_with_finite_differences(name, clip):
    """Both second-order forms, and a difference quotient of the whole lower step, through every
    real optimiser."""
    weights, alphas, train, valid = _network(0)
    chain = optimizer.build(
        optimizer.Optimizer(
            name=name,
            clip=clip,
            learning_rate=0.05,
            schedule="constant",
            warmup=0.0,
            weight_decay=0.01,
        ),
        10,
    )
    state = chain.init(weights)
    for _ in range(2):  # moments that are not zero
        updates, state = chain.update(
            jax.grad(lambda w: train(w, alphas)[0])(weights), state, weights
        )
        weights = optax.apply_updates(weights, updates)

    def update(gradient):
        return optax.apply_updates(weights, chain.update(gradient, state, weights)[0])

    def through(a):
        return valid(update(jax.grad(lambda w: train(w, a)[0])(weights)), a)[0]

    exact = HYPERGRADIENTS["second"]()(train, valid, update, weights, alphas)
    np.testing.assert_allclose(exact.loss, through(alphas), rtol=1e-12)
    finite = HYPERGRADIENTS["finite"]()(train, valid, update, weights, alphas)
    np.testing.assert_allclose(finite.gradient, exact.gradient, rtol=5e-3, atol=1e-6)
    h = 1e-6
    for place in np.ndindex(alphas.shape):
        e = jnp.zeros_like(alphas).at[place].set(h)
        np.testing.assert_allclose(
            (through(alphas + e) - through(alphas - e)) / (2 * h),
            exact.gradient[place],
            rtol=1e-5,
            atol=1e-8,
        )
    first = HYPERGRADIENTS["first"]()(train, valid, update, weights, alphas).gradient
    assert (
        np.abs(first - exact.gradient).max() > 1e-4
    )  # the orders differ, or this test would prove nothing


def test_a_parameter_without_gradient_gives_no_nan():
    """Through Adam's root the derivative at zero is infinite; see optimizer.EPS_ROOT."""
    weights = {"used": jnp.array([1.0, 2.0]), "unused": jnp.array([1.0])}
    chain = optimizer.build(optimizer.Optimizer(clip=0.0, warmup=0.0), 10)
    state = chain.init(weights)

    def loss(w, a):
        return jnp.sum((w["used"] - a) ** 2) + 0 * jnp.sum(w["unused"] * a), {}

    found = HYPERGRADIENTS["second"]()(
        loss,
        loss,
        lambda g: optax.apply_updates(weights, chain.update(g, state, weights)[0]),
        weights,
        jnp.array(0.5),
    )
    assert np.isfinite(found.gradient)
