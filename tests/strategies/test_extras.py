"""Extras against their formulas, and what they do to a search on a quadratic."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import QUICK

from dartformer.errors import InputError
from dartformer.strategies import EXTRAS, Problem, make
from dartformer.strategies.extras.beta_decay import BetaDecay
from dartformer.strategies.extras.drop import Drop
from dartformer.strategies.extras.early_stop import EarlyStop
from dartformer.strategies.extras.entropy import Entropy, entropy
from dartformer.strategies.extras.perturb import Adversarial, Smoothing
from dartformer.strategies.hypergradients import HYPERGRADIENTS

KEY, K, BEST = jax.random.key(1), 6, 4
ROWS = jax.nn.softmax(jax.random.normal(KEY, (2, 1, K)), -1)
START, END = jnp.float32(0.0), jnp.float32(1.0)


def search(strategy, steps, loss, *, rate=0.1, start=None):
    """The states and metrics of a search with SGD."""
    shape = (2, 1, K)
    made = strategy(Problem(loss, shape, shape, optax.sgd(0.1), optax.sgd(rate), steps))
    state = made.init(jax.random.key(0), {"w": jnp.zeros(3)})
    if start is not None:
        state = state._replace(alphas=start)
    step, states, metrics = jax.jit(made.step, compiler_options=QUICK), [state], []
    for _ in range(steps):
        state, found = step(state, jnp.ones(3), jnp.zeros(3))
        states.append(state)
        metrics.append(found)
    return made._replace(step=step), states, metrics


def quadratic(weights, mixture, batch, key):
    worth = jnp.linspace(-0.2, -0.1, K).at[BEST].set(0.8)
    return jnp.sum((weights["w"] - batch) ** 2) - jnp.sum(mixture @ worth), {}


@pytest.mark.parametrize(("candidates", "want"), [(8, 2.0794415), (6, 1.7917595)])
def test_beta_decay_at_zero_is_ln_k(candidates, want):
    found = BetaDecay(weight=1.0).penalty(jnp.zeros((3, 2, candidates)), None, END)
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_beta_decay_is_a_decay_of_the_activated_weights_and_grows():
    alphas = jax.random.normal(KEY, (3, 2, K))
    for progress in (0.0, 0.25, 1.0):
        found = jax.grad(lambda a, p=progress: BetaDecay(weight=50.0).penalty(a, None, p))(alphas)
        np.testing.assert_allclose(found, 50 * progress * jax.nn.softmax(alphas, -1) / 6, rtol=1e-5)


@pytest.mark.parametrize("hypergradient", HYPERGRADIENTS)
def test_penalties_are_in_every_hypergradient(hypergradient):
    """The unrolled step of beta-DARTS' own code leaves the term out."""

    def flat(weights, mixture, batch, key):
        return jnp.sum(weights["w"] ** 2), {}

    alphas = jax.random.normal(KEY, (2, 1, K))
    decay = BetaDecay(weight=3.0)
    strategy = make("darts", {"hypergradient": hypergradient, "warmup": 0.0, "extras": (decay,)})
    _, states, _ = search(strategy, 2, flat, start=alphas, rate=1.0)
    moved = states[2].alphas - states[1].alphas  # at progress 1/2
    want = -1.5 * jax.nn.softmax(states[1].alphas, -1) / 2
    np.testing.assert_allclose(moved, want, rtol=1e-3)


def test_entropy_of_rows_and_its_schedule():
    np.testing.assert_allclose(entropy(jnp.full((2, K), 1 / K)), 1, rtol=1e-6)
    assert (entropy(jnp.eye(K)) == 0).all()
    assert np.isfinite(jax.grad(lambda r: entropy(r).sum())(jnp.eye(K))).all()
    extra, alphas = Entropy(start=-1.0, end=2.0), jnp.zeros((1, 1, K))
    np.testing.assert_allclose(
        [extra.penalty(alphas, None, p) for p in (0.0, 0.5, 1.0)], [-1, 0.5, 2], rtol=1e-6
    )
    alphas = jax.random.normal(KEY, (1, 1, K))
    less = alphas - 0.1 * jax.grad(lambda a: extra.penalty(a, None, END))(alphas)
    assert entropy(jax.nn.softmax(less)) < entropy(jax.nn.softmax(alphas))
    more = alphas - 0.1 * jax.grad(lambda a: extra.penalty(a, None, START))(alphas)
    assert entropy(jax.nn.softmax(more)) > entropy(jax.nn.softmax(alphas))


def rising(rows):
    """A loss of rows, not linear."""
    return jnp.sum(jnp.sin(3 * rows) * jnp.arange(1.0, K + 1))


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_smoothing_stays_on_the_simplex_and_within_its_size(progress):
    size = 0.03 + 0.27 * progress
    rows = ROWS.at[0, 0, 2].set(0).at[0, 0, 1].add(ROWS[0, 0, 2])
    keys = jax.random.split(KEY, 200)
    found = jax.vmap(lambda k: Smoothing().perturb(rows, k, jnp.float32(progress), rising))(keys)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    assert (found >= 0).all()
    assert (found[:, 0, 0, 2] == 0).all()
    assert (found <= (rows + size) / jnp.maximum(1 - K * size, 0.01)).all()
    spread = np.abs(found - rows).max()
    assert 0.2 * size < spread


def test_adversarial_never_lowers_the_loss():
    """A re-implementation left out the sign and descended, which its safeguard then undid: no
    perturbation at all."""
    raised = 0
    for i in range(8):
        rows = jax.nn.softmax(jax.random.normal(jax.random.key(i), (2, 1, K)), -1)
        found = Adversarial().perturb(rows, KEY, END, rising)
        assert (jnp.abs(found - rows) <= 0.3 + 1e-6).all()
        assert ((found >= 0) & (found <= 1)).all()
        assert rising(found) >= rising(rows)
        raised += bool(rising(found) > rising(rows) + 0.1)
    assert raised == 8


def test_only_the_weights_see_the_perturbation():
    def by_mixture(weights, mixture, batch, key):
        return jnp.sum(weights["w"] * mixture.sum((0, 1))[:3]) + jnp.sum(mixture**2), {}

    ends = []
    for extras in ((), (Smoothing(start=0.3),)):
        strategy = make("darts", {"warmup": 0.0, "extras": extras, "spread": 1.0})
        _, states, _ = search(strategy, 1, by_mixture)
        ends.append(states[1])
    np.testing.assert_array_equal(ends[0].alphas, ends[1].alphas)
    assert (ends[0].weights["w"] != ends[1].weights["w"]).any()


@pytest.mark.parametrize(
    "name", ["darts", "gumbel", "dirichlet", "sigmoid", "proxyless", "single_level"]
)
def test_dropping_goes_in_stages_to_the_best(name):
    strategy = make(name, {"warmup": 0.25, "extras": (Drop(),)})
    made, states, metrics = search(strategy, 80, quadratic, rate=0.5)
    counts = [int(m["alive"]) for m in metrics]
    assert [counts[i] for i in (0, 19, 33, 36, 50, 79)] == [6, 6, 6, 4, 3, 1]
    assert counts == sorted(counts, reverse=True)
    final = made.mixture(states[-1])
    assert (final.argmax(-1) == BEST).all()
    assert (np.count_nonzero(final, axis=-1) == 1).all()
    for before, after in itertools.pairwise(states):
        assert not (after.memory["alive"] & ~before.memory["alive"]).any()  # none comes back


def sharpening(weights, mixture, batch, key):
    """The curvature grows with the weight that the search gives to the best arm."""
    return jnp.sum((weights["w"] - batch) ** 2) - jnp.sum(jnp.exp(3 * mixture[..., BEST])), {}


def test_early_stop_returns_the_earlier_alphas():
    extra = EarlyStop(every=2, window=2, patience=3, iterations=12)
    strategy = make("darts", {"warmup": 0.1, "extras": (extra,)})
    _, states, metrics = search(strategy, 60, sharpening, rate=0.05)
    curves = [float(m["alphas_curvature"]) for m in metrics]
    measured = [(i + 1, curve) for i, curve in enumerate(curves) if np.isfinite(curve)]
    assert [s for s, _ in measured][:3] == [8, 10, 12]
    stopped = [float(m["stopped"]) for m in metrics]
    assert 0 < sum(stopped) < 60
    when = stopped.index(1.0) + 1
    at = [s for s, _ in measured].index(when)
    values = [v for _, v in measured]
    averages = [np.mean(values[i - 1 : i + 1]) if i else np.nan for i in range(len(values))]
    growth = [
        averages[i] / averages[i - 3] if i >= 4 and averages[i - 3] > 0 else 0
        for i in range(len(values))
    ]
    assert at == next(i for i, g in enumerate(growth) if g > 1.3)
    np.testing.assert_array_equal(states[when].alphas, states[measured[at - 3][0]].alphas)
    for state in states[when:]:
        np.testing.assert_array_equal(state.alphas, states[when].alphas)
    assert (states[-1].weights["w"] != states[when].weights["w"]).any()
    assert (states[when - 1].alphas != states[when].alphas).any()


def test_curvature_is_that_of_the_alphas_loss():
    extra = EarlyStop(every=1, window=1, patience=1, iterations=12, factor=1e9)
    strategy = make("darts", {"warmup": 0.0, "extras": (extra,), "spread": 0.5})
    _, states, metrics = search(strategy, 3, sharpening)
    for state, found in zip(states[1:], metrics, strict=True):

        def at(a):
            return sharpening({"w": jnp.zeros(3)}, jax.nn.softmax(a, -1), 0.0, None)[0]

        dense = jax.hessian(at)(state.alphas)
        np.testing.assert_allclose(
            found["alphas_curvature"], np.linalg.eigvalsh(dense.reshape(12, 12))[-1], rtol=1e-3
        )


def test_all_at_once_finds_the_best_arm_and_resumes():
    extras = (
        BetaDecay(weight=0.1),
        Entropy(),
        Smoothing(),
        Drop(keep=2),
        EarlyStop(every=2, factor=50.0),
    )
    strategy = make("darts", {"warmup": 0.1, "extras": extras})
    made, states, _ = search(strategy, 60, quadratic, rate=1.0)
    assert (made.mixture(states[-1]).argmax(-1) == BEST).all()
    again = states[23]
    for _ in range(23, 60):
        again, _ = made.step(again, jnp.ones(3), jnp.zeros(3))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(states[-1]), strict=True):
        np.testing.assert_array_equal(
            *(
                jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                for x in (a, b)
            )
        )
    assert set(states[-1].memory) == {"alive", "stopped", "eigenvalues", "earlier"}
    assert strategy.order == 2
    assert not strategy.vectorises


@pytest.mark.parametrize(
    ("strategy", "extra", "reason"),
    [
        ("gumbel", "smoothing", "one-hot samples"),
        ("proxyless", "adversarial", "one-hot samples"),
        ("sigmoid", "smoothing", "do not sum to one"),
        ("single_level", "smoothing", "share one step"),
        ("sigmoid", "beta_decay", "no softmax"),
        ("dirichlet", "beta_decay", "no softmax"),
        ("sigmoid", "entropy", "no softmax"),
    ],
)
def test_compositions_that_make_no_sense_are_refused(strategy, extra, reason):
    with pytest.raises(InputError, match=f"{extra} does not work with .*{reason}"):
        make(strategy, {"extras": (EXTRAS[extra](),)})


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        ("beta_decay", {"weight": 0.0}, "above 0"),
        ("entropy", {"start": 0.0, "end": 0.0}, "does nothing"),
        ("smoothing", {"end": 2.0}, "between 0 and 1"),
        ("adversarial", {"ascents": 0}, "at least 1"),
        ("drop", {"keep": 0}, "at least 1"),
        ("early_stop", {"every": 0}, "at least 1"),
        ("early_stop", {"factor": 1.0}, "above 1"),
    ],
)
def test_bad_options(extra, options, message):
    with pytest.raises(InputError, match=message):
        EXTRAS[extra](**options)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (Drop(keep=6), "drops none"),
        (Drop(keep=4, stages=3), "drops only 2 of 6"),
        (
            EarlyStop(),
            "needs 9 measurements, one every 10 steps of the alphas, before it can stop, "
            "but the alphas take only 67 steps",
        ),
    ],
)
def test_what_does_not_fit_the_search_is_refused(extra, message):
    with pytest.raises(InputError, match=message):
        make("darts", {"extras": (extra,)}).check(K, 100)
    with pytest.raises(InputError, match="twice"):
        make("darts", {"extras": (extra, extra)})
