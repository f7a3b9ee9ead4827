"""Properties of every strategy in the table, on quadratic problems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import QUICK

from dartformer import config as configs
from dartformer import strategies
from dartformer.errors import InputError
from dartformer.strategies import STRATEGIES, Problem, Traits, make, refusal
from dartformer.strategies.darts import Darts
from dartformer.strategies.hypergradients import HYPERGRADIENTS
from dartformer.training import optimizer
from dartformer.training.checkpoint import Checkpoints

LAYERS, HEADS, CANDIDATES, BEST = 2, 3, 4, 2
SHAPES = [(1, 1, CANDIDATES), (LAYERS, 1, CANDIDATES), (LAYERS, HEADS, CANDIDATES)]
SUPERNETS = [name for name in STRATEGIES if make(name, {}).traits.supernet]
LEARNED = [name for name in SUPERNETS if make(name, {}).traits.alphas]
CASES = [(name, {}, SHAPES[1 + i % 2]) for i, name in enumerate(LEARNED)] + [
    ("darts", {}, SHAPES[0]),
    ("gumbel", {"hard": False, "temperature": (1.0, 0.33)}, SHAPES[0]),
]


def loss(weights, mixture, batch, key):
    """Candidate `BEST` is worth something in every place, the others less than nothing; weights
    want `batch`."""
    worth = jnp.linspace(-0.2, -0.1, CANDIDATES).at[BEST].set(0.8)
    value = jnp.sum((weights["w"] - batch) ** 2) - jnp.mean(mixture @ worth)
    return value, {"accuracy": -value}


def switched(chain):
    """An optimiser with a switch in its state, so that a frozen level needs no other program."""

    def update(gradient, state, values):
        updates, moments = chain.update(gradient, state[1], values)
        return jax.tree.map(lambda u: u * state[0], updates), (state[0], moments)

    return optax.GradientTransformation(lambda values: (jnp.ones(()), chain.init(values)), update)


def problem(steps=60, shape=(LAYERS, HEADS, CANDIDATES), loss=loss):
    return Problem(
        loss,
        shape,
        (LAYERS, HEADS, CANDIDATES),
        switched(optimizer.build(optimizer.Optimizer(warmup=0.0), steps)),
        switched(
            optimizer.build(
                optimizer.Optimizer(
                    name="adam",
                    learning_rate=0.1,
                    b1=0.5,
                    schedule="constant",
                    warmup=0.0,
                    weight_decay=0.0,
                ),
                steps,
            )
        ),
        steps,
    )


def start(strategy):
    return strategy.init(jax.random.key(0), {"w": jnp.zeros(3)})


def equal(a, b):
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(("name", "options", "shape"), CASES)
def test_finds_the_best_arm_resumes_anywhere_and_leaves_the_other_level_alone(
    name, options, shape, tmp_path
):
    made = make(name, options)
    strategy = made(problem(shape=shape))
    state = start(strategy)
    assert state.alphas.shape == shape
    step = jax.jit(strategy.step, compiler_options=QUICK)

    def batch(i):
        return jnp.full(3, 0.1 * (i % 2)), jnp.zeros(3)

    for i in range(60):
        state, metrics = step(state, *batch(i))
        assert metrics["finite"]
        if i == 24:
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(25, state, {})
    mixture = strategy.mixture(state)
    assert mixture.shape == (LAYERS, HEADS, CANDIDATES)
    if made.traits.simplex:
        np.testing.assert_allclose(mixture.sum(-1), 1, atol=1e-6)
    assert (mixture.argmax(-1) == BEST).all()
    assert int(state.step) == 60

    with Checkpoints(tmp_path) as checkpoints:
        again = middle = checkpoints.latest(start(strategy)).state
    assert int(middle.step) == 25
    for i in range(25, 60):
        again, _ = step(again, *batch(i))
    assert equal(again, state)

    # Alphas in the weights' optimiser, or the reverse, is the commonest bug of re-implementations
    # (DARTS-PyTorch#5).
    for which, other in (("alphas", "weights"), ("weights", "alphas")):
        field = f"{which}_optimizer"
        frozen = middle._replace(**{field: (jnp.zeros(()), getattr(middle, field)[1])})
        new, _ = step(frozen, *batch(0))
        assert equal(getattr(new, which), getattr(middle, which))
        assert not equal(getattr(new, other), getattr(middle, other))


@pytest.mark.parametrize("name", [n for n in SUPERNETS if n not in LEARNED])
def test_without_alphas_every_candidate_is_trained_and_the_mixture_stays_uniform(name, tmp_path):
    """Weights of a candidate move where it is in the mixture: all of them, equally often."""

    def each(weights, mixture, batch, key):
        return -jnp.sum(weights["w"] * mixture), {}

    made = make(name, {})
    sgd = problem(200, loss=each)
    sgd = Problem(**{**sgd.__dict__, "weights_optimizer": optax.sgd(1.0)})
    strategy = made(sgd)
    state = strategy.init(jax.random.key(0), {"w": jnp.zeros((LAYERS, HEADS, CANDIDATES))})
    step = jax.jit(strategy.step, compiler_options=QUICK)
    before = state
    for i in range(200):
        after, _ = step(before, None, None)
        given = np.asarray(after.weights["w"] - before.weights["w"])
        np.testing.assert_allclose(given.sum(-1), 1, atol=1e-4)
        if made.sampled and i < 20:
            np.testing.assert_allclose(given.max(-1), 1, atol=1e-4)
        before = after
        if i == 189:
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(190, after, {})
                again = checkpoints.latest(state).state
    for _ in range(10):
        again, _ = step(again, None, None)
    assert equal(again, before)
    assert (before.alphas == 0).all()
    np.testing.assert_array_equal(strategy.mixture(before), np.float32(1 / CANDIDATES))
    np.testing.assert_allclose(before.weights["w"], 50, atol=0.01 if not made.sampled else 4 * 6.2)


@pytest.mark.parametrize("name", STRATEGIES)
def test_traits_are_true(name):
    made = make(name, {})
    assert made.traits.derivations
    assert not (made.sampled and made.vectorises)
    if not made.traits.supernet:
        with pytest.raises(ValueError, match="no supernet"):
            made(problem())


@pytest.mark.parametrize("hypergradient", HYPERGRADIENTS)
def test_each_level_leaves_the_other_bit_identical(hypergradient):
    """Alphas in the weights' optimiser, or the reverse, is the commonest bug of DARTS
    re-implementations."""
    frozen = optax.set_to_zero()
    base = problem()
    for which in ("alphas", "weights"):
        kwargs = {f"{which}_optimizer": frozen}
        strategy = Darts(hypergradient, warmup=0.0)(Problem(**{**base.__dict__, **kwargs}))
        state = start(strategy)
        new, _ = jax.jit(strategy.step, compiler_options=QUICK)(state, jnp.ones(3), jnp.zeros(3))
        other = {"alphas": "weights", "weights": "alphas"}[which]
        for a, b in zip(
            jax.tree.leaves(getattr(state, which)),
            jax.tree.leaves(getattr(new, which)),
            strict=True,
        ):
            assert (a == b).all(), which
        assert any(
            (a != b).any()
            for a, b in zip(
                jax.tree.leaves(getattr(state, other)),
                jax.tree.leaves(getattr(new, other)),
                strict=True,
            )
        ), other


def test_warmup_moves_weights_alone():
    strategy = Darts(warmup=0.5)(problem(10))
    state = start(strategy)
    step = jax.jit(strategy.step, compiler_options=QUICK)
    for i in range(10):
        new, metrics = step(state, jnp.ones(3), jnp.zeros(3))
        assert (new.alphas == state.alphas).all() == (i < 5)
        assert np.isnan(metrics["alphas_loss"]) == (i < 5)
        assert (new.weights["w"] != state.weights["w"]).any()
        state = new


def test_alphas_read_their_own_data():
    """The upper level's gradient comes from its batch: weights' data alone cannot move it (first
    order)."""

    def by_batch(weights, mixture, batch, key):
        return jnp.sum(weights["w"] ** 2) + batch * mixture[0, 0, 0], {}

    base = problem()
    strategy = Darts("first", warmup=0.0, spread=0.0)(
        Problem(**{**base.__dict__, "loss": by_batch})
    )
    state = start(strategy)
    step = jax.jit(strategy.step, compiler_options=QUICK)
    assert (step(state, jnp.array(5.0), jnp.array(0.0))[0].alphas == state.alphas).all()
    assert (step(state, jnp.array(0.0), jnp.array(5.0))[0].alphas != state.alphas).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hypergradient": "frist"}, "Did you mean 'first'"),
        ({"warmup": 1.5}, "between 0 and 1; got 1.5"),
        ({"spread": -1.0}, "at least 0"),
        ({"warm_up": 0.1}, "Did you mean 'warmup'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        make("darts", options)


@pytest.mark.parametrize(
    ("traits", "derivation", "reason"),
    [
        (Traits("", ("argmax",)), "argmax", None),
        (Traits("", ("argmax",)), "race", "only after other"),
        (Traits("", ("evolution",), alphas=False), "argmax", "learns no alphas"),
        (Traits("", ("argmax",), simplex=False), "sample", "not a distribution"),
        (Traits("", ("race",), supernet=False), "masked_drop", "no supernet"),
    ],
)
def test_unsupported_derivations_are_refused_with_the_reason(traits, derivation, reason):
    found = refusal(traits, derivation)
    assert found is None if reason is None else reason in found


def test_another_packages_strategy_by_its_entry_point(tmp_path, monkeypatch):
    """It is listed, brings its options to the config, and is made; one that is no strategy, or
    fails, says so."""
    (tmp_path / "theirs.py").write_text(
        "from dataclasses import dataclass\nfrom dartformer.strategies.darts import Darts\n"
        "@dataclass(frozen=True)\nclass Theirs(Darts):\n    patience: int = 3\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dartformer.strategy]\ntheirs = theirs:Theirs\nnone = theirs:dataclass\n"
        "gone = no_such_module:Thing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(STRATEGIES, "registered", {})
    config = configs.defaults(strategy="theirs")
    assert config.search.strategy.patience == 3
    configs.override(config, {"search.strategy.patience": "5"})
    assert configs.build(config).search.strategy.built.patience == 5
    assert strategies.names()[-3:] == ["gone", "none", "theirs"]
    for name, message in (
        ("none", "must be a dataclass with `traits`; got <function"),
        ("gone", "does not load"),
        ("their", "Did you mean 'theirs'"),
    ):
        with pytest.raises(InputError, match=message):
            strategies.make(name, {})
