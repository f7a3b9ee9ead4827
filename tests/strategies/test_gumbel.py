"""Gumbel samples against the formulas of GDAS and SNAS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.errors import InputError
from dartformer.strategies import make
from dartformer.strategies.gumbel import relaxed, straight_through

ALPHAS = jnp.array([[[0.5, -1.0, 0.0, 2.0]], [[0.0, 0.0, 3.0, -2.0]]])


def test_hard_samples_are_one_hot_to_the_bit():
    draw = make("gumbel", {}).relaxation().lower
    for i in range(20):
        rows = np.asarray(draw(ALPHAS, None, jax.random.key(i), jnp.float32(0.3)))
        assert set(np.unique(rows)) == {0.0, 1.0}
        assert (rows.sum(-1) == 1).all()


def test_gradient_of_a_hard_sample():
    """dw_i/da_j = q_i (delta_ij - q_j) / tau; at q = 1/2, tau = 1 that is 1/4."""
    with jax.enable_x64(True):
        alphas, key, tau = jnp.array([0.3, -0.2, 0.5]), jax.random.key(1), 0.7
        q = relaxed(alphas, None, key, tau)
        found = jax.jacobian(lambda a: straight_through(relaxed(a, None, key, tau)))(alphas)
        np.testing.assert_allclose(
            found, (jnp.diag(q) - jnp.outer(q, q)) / tau, rtol=1e-9, atol=1e-12
        )
        half = jax.jacobian(lambda a: straight_through(jax.nn.softmax(a)))(jnp.zeros(2))
        np.testing.assert_allclose(half, [[0.25, -0.25], [-0.25, 0.25]])


def test_shift_of_the_alphas_changes_nothing():
    key = jax.random.key(2)
    np.testing.assert_allclose(
        relaxed(ALPHAS + 5, None, key, 0.5), relaxed(ALPHAS, None, key, 0.5), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_frequencies_are_the_softmax_at_any_temperature(tau):
    keys = jax.random.split(jax.random.key(0), 4000)
    samples = jax.jit(jax.vmap(lambda k: straight_through(relaxed(ALPHAS, None, k, tau))))(keys)
    np.testing.assert_allclose(
        samples.mean(0), jax.nn.softmax(ALPHAS, -1), atol=4 * 0.5 / 4000**0.5
    )


def test_dropped_candidates_are_never_drawn():
    alive = jnp.array([[[True, False, True, False]], [[True, True, False, True]]])
    draw = jax.jit(make("gumbel", {}).relaxation().lower)
    for i in range(30):
        rows = draw(ALPHAS, alive, jax.random.key(i), jnp.float32(1.0))
        assert (rows[~alive] == 0).all()
        assert (rows.sum(-1) == 1).all()


def test_temperature_falls_linearly_and_sharpens_the_soft_samples():
    draw = make("gumbel", {"hard": False, "temperature": (10.0, 0.1)}).relaxation().upper
    key = jax.random.key(4)
    for progress in (0.0, 0.5, 1.0):
        tau = 10.0 - 9.9 * progress
        np.testing.assert_allclose(
            draw(ALPHAS, None, key, jnp.float32(progress)),
            relaxed(ALPHAS, None, key, tau),
            rtol=1e-3,
        )
    assert (
        draw(ALPHAS, None, key, jnp.float32(1.0)).max()
        > draw(ALPHAS, None, key, jnp.float32(0.0)).max()
    )


@pytest.mark.parametrize("temperature", [(1.0,), (1.0, 0.0), (-1.0, 1.0), ("a", 1.0)])
def test_bad_temperatures(temperature):
    with pytest.raises(InputError, match="two numbers above 0"):
        make("gumbel", {"temperature": temperature})


def test_only_soft_samples_share_a_program():
    assert make("gumbel", {}).sampled
    assert not make("gumbel", {}).vectorises
    assert make("gumbel", {"hard": False}).vectorises
