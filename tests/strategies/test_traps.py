"""Bugs that other implementations of these searches have had, one test each; the rest are beside
what they are about.

Elsewhere: alphas in the weights' optimiser (`test_strategies`), a dropped Hessian term and the toy
of figure 2 (`test_bilevel`, `test_implicit`), an adversary that descends and the last alphas
instead of the earlier ones (`test_extras`), a loader made anew at each step
(`test_strategies_whole`)."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import QUICK

from dartformer.strategies import STRATEGIES, Problem, State, make

SHAPE = (2, 1, 4)
TABLE = [
    (name, {})
    for name in STRATEGIES
    if make(name, {}).vectorises and make(name, {}).traits.supernet
] + [("gumbel", {"hard": False})]


def loss(weights, mixture, batch, key):
    """Each candidate has a weight of its own; the batch says how much each is worth."""
    value = jnp.mean((jnp.sum(mixture * weights["w"] * batch[:, None, None], (1, 2)) - 1) ** 2)
    return value, {"accuracy": -value}


def problem(steps=20):
    return Problem(loss, SHAPE, SHAPE, optax.sgd(0.1, 0.9), optax.adam(0.1), steps)


def start(strategy, key):
    return strategy.init(key, {"w": jax.random.normal(key, SHAPE)})


@pytest.mark.parametrize(("name", "options"), TABLE)
def test_seeds_in_one_program_are_the_seeds_alone(name, options):
    """Seeds that share random numbers, or a `cond` decided by the first of them, would not be."""
    made = make(
        name, {**options, **({"warmup": 0.3} if "warmup" in make(name, {}).__dict__ else {})}
    )
    strategy = made(problem())
    keys = jax.random.split(jax.random.key(0), 3)
    axes = State(*[0] * len(State._fields))._replace(step=None)
    together = jax.vmap(lambda k: start(strategy, k), out_axes=axes)(keys)
    alone = [start(strategy, k) for k in keys]
    step = jax.jit(strategy.step, compiler_options=QUICK)
    steps = jax.jit(jax.vmap(strategy.step, (axes, 0, 0), (axes, 0)), compiler_options=QUICK)
    rng = np.random.default_rng(0)
    for _ in range(12):
        batch = rng.standard_normal((2, 3, 8, 4)).astype(np.float32)
        together, _ = steps(together, *batch)
        alone = [step(one, batch[0, i], batch[1, i])[0] for i, one in enumerate(alone)]
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.alphas[i], one.alphas, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together.weights["w"][i], one.weights["w"], rtol=1e-4, atol=1e-5)
    if made.traits.alphas:
        assert np.abs(alone[0].alphas - alone[1].alphas).max() > 1e-3


MESH = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from dartformer.training.checkpoint import Checkpoints
from test_traps import QUICK, problem, start
from dartformer.training.devices import MeshShape, layout
from dartformer.strategies import make
from dartformer.training.step import CompiledStep

assert jax.device_count() == layout(MeshShape(), 16).ways == 8
assert layout(MeshShape(1), 16) is None
for name in ("darts", "gumbel"):
    strategy = make(name, {"warmup": 0.2})(problem())
    one = start(strategy, jax.random.key(1))
    many = jax.tree.map(jnp.copy, one)
    step = jax.jit(strategy.step, compiler_options=QUICK)
    among = CompiledStep(lambda state, pair: strategy.step(state, *pair), layout(MeshShape(), 16))
    for i in range(8):
        pair = np.random.default_rng(i).standard_normal((2, 16, 4)).astype(np.float32)
        one, _ = step(one, *pair)
        many, _ = among(many, tuple(pair))
    shards = [np.asarray(s.data) for s in many.alphas.addressable_shards]
    assert len(shards) == 8
    assert all(s.shape == one.alphas.shape and (s == shards[0]).all() for s in shards), name
    np.testing.assert_allclose(shards[0], one.alphas, rtol=1e-4, atol=1e-5)
    with Checkpoints(Path(sys.argv[1]) / name) as kept:  # what many devices saved goes on on one
        kept.save(8, many, {})
        back = kept.latest(one).state
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(back))
    assert (np.asarray(back.alphas) == shards[0]).all()
print("same")
"""


def test_alphas_are_the_same_on_all_devices_of_a_mesh(tmp_path):
    """Each process deriving an architecture of its own is nni#5013. A step shared out is that of
    one device."""
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", MESH, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize(("warmup", "winner"), [(0.0, 0), (0.5, 1)])
def test_an_arm_without_weights_wins_unless_the_others_may_learn_first(warmup, winner):
    """darts#73, AutoDL#58: what needs no learning is ahead at first, and takes mixture and gradient
    for good."""

    def race(weights, mixture, batch, key):
        worth = jnp.array([0.5, 0.0, 0.0, 0.0]).at[1].set(jax.nn.sigmoid(weights["w"]))
        return -jnp.mean(mixture @ worth), {}

    strategy = make("darts", {"warmup": warmup})(
        Problem(race, SHAPE, SHAPE, optax.sgd(1.0), optax.adam(0.1), 200)
    )
    state = strategy.init(jax.random.key(0), {"w": jnp.float32(-3.0)})
    step = jax.jit(strategy.step, compiler_options=QUICK)
    for _ in range(200):
        state, _ = step(state, None, None)
    assert (strategy.mixture(state).argmax(-1) == winner).all()


@pytest.mark.parametrize("name", [n for n in STRATEGIES if make(n, {}).traits.alphas])
def test_alphas_go_on_from_where_they_are(name):
    """Alphas made anew at every forward pass are vega#85: with no rate they must stay what they
    were given as."""
    strategy = make(name, {"warmup": 0.0})(
        Problem(loss, SHAPE, SHAPE, optax.sgd(0.1), optax.sgd(0.0), 5)
    )
    state = start(strategy, jax.random.key(2))
    given = state.alphas + jnp.arange(4.0)
    state = state._replace(alphas=given)
    before = strategy.mixture(state)
    new, _ = jax.jit(strategy.step, compiler_options=QUICK)(
        state, jnp.ones((2, 4)), jnp.ones((2, 4))
    )
    np.testing.assert_allclose(new.alphas, given, atol=1e-6)  # two-path's shift rounds
    np.testing.assert_allclose(strategy.mixture(new), before, atol=1e-6)
    assert (before.argmax(-1) == 3).all()
