"""Dirichlet, sigmoid and two-path relaxations against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK

from dartformer.errors import InputError
from dartformer.strategies import make
from dartformer.strategies.dirichlet import concentration, divergence
from dartformer.strategies.proxyless import draw_pair, settle, two_paths
from dartformer.strategies.relax import SOFTMAX
from dartformer.strategies.sigmoid import zero_one

KEY, HALF = jax.random.key(1), jnp.float32(0.5)
ALPHAS = jnp.array([[[0.5, -1.0, 0.0, 2.0]], [[0.0, 0.0, 3.0, -2.0]]])
ALIVE = jnp.array([[[True, False, True, True]], [[True, True, False, False]]])
STRATEGIES = ("darts", "dirichlet", "sigmoid", "proxyless", "gumbel", "single_level")


@pytest.mark.parametrize("name", STRATEGIES)
def test_dropped_candidates_weigh_nothing_and_get_no_gradient(name):
    made = make(name, {})
    relaxation = made.relaxation()
    for rows_of in (relaxation.lower, relaxation.upper):
        rows, pull_back = jax.vjp(lambda a, r=rows_of: r(a, ALIVE, KEY, HALF), ALPHAS)
        assert (rows[~ALIVE] == 0).all()
        if made.traits.simplex:
            np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)
        (gradient,) = pull_back(jax.random.normal(KEY, rows.shape))
        assert np.isfinite(gradient).all()
        if name != "dirichlet":  # where the draw as a whole depends on every concentration
            assert (gradient[~ALIVE] == 0).all()
    soft = relaxation.soft(ALPHAS, ALIVE)
    assert (soft[~ALIVE] == 0).all()
    assert (relaxation.soft(ALPHAS, None) > 0).all()


def test_dirichlet_divergence():
    with jax.enable_x64(True):
        np.testing.assert_allclose(divergence(concentration(jnp.zeros((2, 5)))), 0, atol=1e-12)
        np.testing.assert_allclose(divergence(concentration(jnp.ones(2))), 0.1250928, atol=1e-7)
    penalty = make("dirichlet", {"regularisation": 2.0}).penalty(jnp.ones((3, 1, 2)), None)
    np.testing.assert_allclose(penalty, 2 * 0.1250928, rtol=1e-5)


def test_dirichlet_draws_have_the_mean_and_a_gradient_that_moves_it():
    relaxation = make("dirichlet", {}).relaxation()
    keys = jax.random.split(KEY, 3000)
    draws = jax.jit(
        jax.vmap(lambda k: relaxation.lower(ALPHAS, None, k, HALF)), compiler_options=QUICK
    )(keys)
    np.testing.assert_allclose(
        draws.mean(0), relaxation.soft(ALPHAS, None), atol=4 * 0.3 / 3000**0.5
    )

    def sampled(a):
        return jax.vmap(lambda k: relaxation.upper(a, None, k, HALF))(keys)[..., 0, 0, 0].mean()

    def mean(a):
        return relaxation.soft(a, None)[0, 0, 0]

    gradient = jax.jit(jax.grad(sampled), compiler_options=QUICK)(ALPHAS)
    np.testing.assert_allclose(gradient, jax.grad(mean)(ALPHAS), atol=0.02)
    low = jnp.full((1, 1, 4), -8.0)
    found = jax.grad(lambda a: relaxation.upper(a, None, KEY, HALF)[0, 0, 0])(low)
    assert np.isfinite(found).all()


def test_zero_one_loss():
    assert zero_one(jnp.full(4, 0.5)) == 0
    gates = jnp.array([0.0, 1.0, 1.0])
    np.testing.assert_allclose([zero_one(gates), zero_one(gates, "l1")], [-0.25, -0.5])
    np.testing.assert_allclose(
        make("sigmoid", {}).penalty(jnp.array([[[-50.0, 50.0]]]), None), -2.5
    )


def test_gates_are_independent():
    rows = make("sigmoid", {}).relaxation().soft(ALPHAS, None)
    more = make("sigmoid", {}).relaxation().soft(ALPHAS.at[0, 0, 0].add(1.0), None)
    assert (rows != more).sum() == 1


def test_two_paths_gradient():
    """The published triple, the pair being all there is: J_softmax^T v for three alphas, and over a
    pair of them."""
    with jax.enable_x64(True):
        alphas, v = jnp.array([0.3, -0.2, 0.5]), jnp.array([1.0, 2.0, -1.0])
        _, pull_back = jax.vjp(jax.nn.softmax, alphas)
        np.testing.assert_allclose(pull_back(v)[0], [0.2296145, 0.3537466, -0.5833612], atol=1e-7)
        for i in range(6):
            key = jax.random.key(i)
            pair = np.asarray(draw_pair(alphas, None, jax.random.split(key)[0]))
            assert pair.sum() == 2
            gates, pull_back = jax.vjp(lambda a, key=key: two_paths(a, None, key, HALF), alphas)
            (found,) = pull_back(v)
            q = np.where(pair, np.exp(alphas), 0)
            q = q / q.sum()
            want = [sum(v[j] * q[j] * ((i == j) - q[i]) for j in range(3)) for i in range(3)]
            np.testing.assert_allclose(found, want, atol=1e-12)
            assert ((np.asarray(gates) != 0) == pair).all()  # both are computed
            np.testing.assert_allclose(np.sort(gates)[-1:], 1)
            assert np.float32(gates.sum()) == 1  # and one is felt


def test_two_paths_leave_the_probabilities_of_the_others():
    after = ALPHAS + jax.random.normal(KEY, ALPHAS.shape)
    settled = settle(ALPHAS, after, None, KEY)
    pair = draw_pair(ALPHAS, None, jax.random.split(KEY)[0])
    p, q = jax.nn.softmax(ALPHAS, -1), jax.nn.softmax(settled, -1)
    np.testing.assert_allclose(p[~pair], q[~pair], rtol=1e-5)
    assert (np.abs(p - q)[pair] > 1e-3).all()
    np.testing.assert_array_equal(settled[~pair], ALPHAS[~pair])


def test_pairs_are_drawn_by_probability():
    keys = jax.random.split(KEY, 2000)
    pairs = np.asarray(jax.vmap(lambda k: draw_pair(ALPHAS, None, k))(keys))
    p = np.asarray(jax.nn.softmax(ALPHAS, -1))[0, 0]
    want = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    np.testing.assert_allclose(pairs[:, 0, 0].mean(0), want, atol=4 * 0.5 / 2000**0.5)
    alone = draw_pair(ALPHAS, jnp.zeros_like(ALPHAS, bool).at[..., 1].set(True), KEY)
    assert alone.sum() == 2
    assert alone[..., 1].all()


def test_soft_rows_are_what_the_published_relaxation_gives():
    np.testing.assert_allclose(
        SOFTMAX.soft(ALPHAS, None),
        np.exp(ALPHAS) / np.exp(ALPHAS).sum(-1, keepdims=True),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dirichlet", {"regularisation": -1.0}, "at least 0"),
        ("sigmoid", {"zero_one": -1.0}, "at least 0"),
        ("sigmoid", {"norm": "l3"}, "unknown search.strategy.norm 'l3'"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(InputError, match=message):
        make(name, options)
