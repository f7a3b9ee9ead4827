"""Properties of every strategy in the table, on quadratic problems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dartformer import optimizer
from dartformer.errors import InputError
from dartformer.strategies import STRATEGIES, Problem, Traits, make, refusal
from dartformer.strategies.bilevel import HYPERGRADIENTS
from dartformer.strategies.darts import Darts

LAYERS, HEADS, CANDIDATES, BEST = 2, 3, 4, 2


def loss(weights, mixture, batch, key):
    """Candidate `BEST` is worth most, in every place; weights want to be `batch`."""
    worth = jnp.linspace(0.1, 0.2, CANDIDATES).at[BEST].set(1.0)
    value = jnp.sum((weights["w"] - batch) ** 2) - jnp.mean(mixture @ worth)
    return value, {"accuracy": -value}


def problem(steps=60, shape=(LAYERS, HEADS, CANDIDATES)):
    return Problem(loss, shape, (LAYERS, HEADS, CANDIDATES),
                   optimizer.build({**optimizer.DEFAULTS, "warmup": 0.0}, steps),
                   optimizer.build({**optimizer.DEFAULTS, "name": "adam", "learning_rate": 0.1, "schedule": "constant",
                                    "warmup": 0.0, "b1": 0.5, "weight_decay": 0.0}, steps), steps)


def start(strategy):
    return strategy.init(jax.random.key(0), {"w": jnp.zeros(3)})


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("shape", [(1, 1, CANDIDATES), (LAYERS, 1, CANDIDATES), (LAYERS, HEADS, CANDIDATES)])
def test_finds_the_best_arm(name, shape):
    strategy = make(name, {})(problem(shape=shape))
    state = start(strategy)
    assert state.alphas.shape == shape
    step = jax.jit(strategy.step)
    for i in range(60):
        state, metrics = step(state, jnp.full(3, 0.1 * (i % 2)), jnp.zeros(3))
        assert metrics["finite"]
    mixture = strategy.mixture(state)
    assert mixture.shape == (LAYERS, HEADS, CANDIDATES)
    np.testing.assert_allclose(mixture.sum(-1), 1, atol=1e-6)
    assert (mixture.argmax(-1) == BEST).all()
    assert int(state.step) == 60


@pytest.mark.parametrize("name", STRATEGIES)
def test_is_deterministic_and_resumes_anywhere(name):
    strategy = make(name, {})(problem(20))
    step = jax.jit(strategy.step)
    states = [start(strategy)]
    for _ in range(20):
        states.append(step(states[-1], jnp.ones(3), jnp.zeros(3))[0])
    again = jax.tree.map(lambda leaf: leaf.copy(), states[9])
    for _ in range(11):
        again, _ = step(again, jnp.ones(3), jnp.zeros(3))
    for a, b in zip(jax.tree.leaves(states[-1]), jax.tree.leaves(again), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("hypergradient", HYPERGRADIENTS)
def test_each_level_leaves_the_other_bit_identical(hypergradient):
    """Alphas in the weights' optimiser, or the reverse, is the commonest bug of DARTS re-implementations."""
    frozen = optax.set_to_zero()
    base = problem()
    for which in ("alphas", "weights"):
        kwargs = {f"{which}_optimizer": frozen}
        strategy = Darts(hypergradient, warmup=0.0)(Problem(**{**base.__dict__, **kwargs}))
        state = start(strategy)
        new, _ = jax.jit(strategy.step)(state, jnp.ones(3), jnp.zeros(3))
        other = {"alphas": "weights", "weights": "alphas"}[which]
        for a, b in zip(jax.tree.leaves(getattr(state, which)), jax.tree.leaves(getattr(new, which)), strict=True):
            assert (a == b).all(), which
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(getattr(state, other)),
                                                  jax.tree.leaves(getattr(new, other)), strict=True)), other


def test_warmup_moves_weights_alone():
    strategy = Darts(warmup=0.5)(problem(10))
    state = start(strategy)
    step = jax.jit(strategy.step)
    for i in range(10):
        new, metrics = step(state, jnp.ones(3), jnp.zeros(3))
        assert (new.alphas == state.alphas).all() == (i < 5)
        assert np.isnan(metrics["alphas_loss"]) == (i < 5)
        assert (new.weights["w"] != state.weights["w"]).any()
        state = new


def test_alphas_read_their_own_data():
    """The upper level's gradient comes from its batch: weights' data alone cannot move it (first order)."""

    def by_batch(weights, mixture, batch, key):
        return jnp.sum(weights["w"] ** 2) + batch * mixture[0, 0, 0], {}

    base = problem()
    strategy = Darts("first", warmup=0.0, spread=0.0)(Problem(**{**base.__dict__, "loss": by_batch}))
    state = start(strategy)
    step = jax.jit(strategy.step)
    assert (step(state, jnp.array(5.0), jnp.array(0.0))[0].alphas == state.alphas).all()
    assert (step(state, jnp.array(0.0), jnp.array(5.0))[0].alphas != state.alphas).any()


@pytest.mark.parametrize(("options", "message"), [
    ({"hypergradient": "frist"}, "Did you mean 'first'"), ({"warmup": 1.5}, "between 0 and 1; got 1.5"),
    ({"spread": -1.0}, "at least 0"), ({"warm_up": 0.1}, "Did you mean 'warmup'")])
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        make("darts", options)


@pytest.mark.parametrize(("traits", "derivation", "reason"), [
    (Traits("", ("argmax",)), "argmax", None), (Traits("", ("argmax",)), "grid", "made for another"),
    (Traits("", ("evolution",), alphas=False), "argmax", "learns no alphas"),
    (Traits("", ("argmax",), simplex=False), "sample", "no distribution"),
    (Traits("", ("grid",), supernet=False), "masked_drop", "no supernet")])
def test_unsupported_derivations_are_refused_with_the_reason(traits, derivation, reason):
    found = refusal(traits, derivation)
    assert found is None if reason is None else reason in found
