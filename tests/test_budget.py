"""Budgets: prices against counting by hand, the multiplier against a problem that is known, and
what cannot be."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dartformer import config as configs
from dartformer.attention import parse
from dartformer.cost import flops, model_parameters
from dartformer.cost.budget import Budget, Price, require_possible
from dartformer.cost.budget import parse as parse_budget
from dartformer.cost.measure import temp_bytes
from dartformer.cost.prices import prices
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.search_space import SearchSpace
from dartformer.strategies import Constraint, Problem, make

CONFIG = TransformerConfig(20, 10, 32, layers=2, heads=3, head_dim=4, model_dim=8, mlp_dim=16)
SPACE = SearchSpace(tuple(parse(t) for t in ("full", "conv(width=3)", "uniform")), 2, 3, "head")
RNG = np.random.default_rng(0)
UNEVEN = Price("flops", 5.0, np.array([[0, 7, 8, 9], [0, 1, 4, 8], [0, 2, 3, 4.5]]))


def draw(space):
    return np.array(list(itertools.product(range(3), repeat=space.heads)))


def test_formulas_of_a_genotype_are_those_of_its_model():
    budget = Budget.of({"flops": 1e9, "parameters": 1e6, "batch": 2})
    costs = prices(CONFIG, SPACE, budget)
    for _ in range(3):
        genotype = SPACE.random(RNG)
        assert costs["flops"].of(genotype, SPACE) == pytest.approx(flops(CONFIG, genotype, batch=2))
        assert costs["parameters"].of(genotype, SPACE) == model_parameters(
            transformer(CONFIG, genotype)
        )


def test_expected_cost_is_the_mean_over_all_genotypes():
    mixture = RNG.dirichlet(np.ones(3), (2, 3))
    total = 0.0
    for row in draw(SPACE):
        odds = np.prod(mixture[:, np.arange(3), row], -1)
        layer = UNEVEN.groups[np.arange(3), UNEVEN.counts(row[None])[0]].sum()
        total += (odds * layer).sum()
    with jax.enable_x64(True):
        expected = UNEVEN.expected(jnp.asarray(mixture), SPACE.heads)
        gradient = jax.grad(lambda m: UNEVEN.expected(m, SPACE.heads))(jnp.asarray(mixture))
    assert float(expected) == pytest.approx(5 + total)
    assert np.isfinite(np.asarray(gradient)).all()
    genotype = SPACE.random(RNG)
    assert float(
        UNEVEN.expected(jnp.asarray(SPACE.mixture(genotype)), SPACE.heads)
    ) == pytest.approx(UNEVEN.of(genotype, SPACE))


@pytest.mark.parametrize("granularity", ["head", "layer", "model"])
@pytest.mark.parametrize("largest", [False, True])
def test_cheapest_by_trying_all(granularity, largest):
    space = SearchSpace(SPACE.candidates, 2, 3, granularity)
    price = Price("flops", 5.0, UNEVEN.groups, largest)
    rows, columns, _ = space.alphas_shape
    costs = [
        price.of(space.genotype(np.reshape(c, (rows, columns))), space)
        for c in itertools.product(range(3), repeat=rows * columns)
    ]
    for extreme, expected in (
        (price.cheapest(space), min(costs)),
        (price.most_expensive(space), max(costs)),
    ):
        assert extreme[0] == pytest.approx(expected) == price.of(extreme[1], space)


def searched(limit, name="darts", steps=250, **options):
    """A search whose loss likes candidate 0, of cost 10, better than 1, of cost 4, and 2, of cost
    1."""
    costs, likes = jnp.array([10.0, 4.0, 1.0]), jnp.array([0.0, 0.5, 2.0])

    def loss(w, mixture, batch, key):
        return jnp.sum(w**2) + jnp.mean(mixture @ likes), {}

    constraint = Constraint(lambda m: jnp.stack([jnp.sum(m @ costs) / limit]), ("flops",), 0.9, 0.1)
    problem = Problem(
        loss, (2, 1, 3), (2, 1, 3), optax.sgd(0.1), optax.adam(0.05), steps, constraint
    )
    strategy = make(name, {"warmup": 0.0, **options})(problem)
    state, metrics = jax.lax.scan(
        lambda s, _: strategy.step(s, None, None),
        strategy.init(jax.random.key(0), jnp.ones(2)),
        None,
        length=steps,
    )
    mixture = np.asarray(strategy.mixture(state))
    return float(np.sum(mixture @ np.asarray(costs))), metrics, state


@pytest.mark.parametrize("name", ["darts", "gumbel", "single_level"])
def test_expected_cost_settles_at_the_budget(name):
    cost, metrics, _ = searched(8.0, name, steps=500)
    assert 0.8 * 8 < cost < 1.1 * 8, (
        cost
    )  # neither above it, nor collapsed to the cheapest, which costs 2
    assert float(metrics["flops_multiplier"][-1]) > 0
    assert float(metrics["flops_of_budget"][-1]) == pytest.approx(cost / 8, rel=1e-4)


def test_a_budget_that_is_met_changes_nothing():
    cost, metrics, state = searched(1000.0)
    assert float(jnp.max(metrics["flops_multiplier"])) == 0
    assert cost > 19
    assert state.memory["multipliers"].shape == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": 12}, "Did you mean 'latency_ms'"),
        ({"latency_ms": 0}, "above 0"),
        ({"flops": -1}, "above 0"),
        ({"flops": float("nan")}, "above 0"),
        ({"batch": 2}, "limits nothing"),
        ({"flops": 1, "phase": "fwd"}, "phase"),
        ({"memory_bytes": 1, "phase": "decode"}, "does not work with phase = 'decode'"),
        ({"flops": 1, "batch": 1.5}, "whole number"),
    ],
)
def test_what_is_no_budget(options, message):
    with pytest.raises(InputError, match=message):
        Budget.of(options)


def test_budgets_as_text():
    assert parse_budget(["latency_ms=12,batch=8", "phase=train"]) == {
        "latency_ms": 12.0,
        "batch": 8,
        "phase": "train",
    }
    for wrong in ("latency_ms", "latency_ms=a", "latency_ms=inf", "speed=3"):
        with pytest.raises(InputError):
            parse_budget([wrong])


def test_a_budget_below_the_cheapest_says_what_that_costs():
    with pytest.raises(
        InputError, match=r"flops = 12 is below the cheapest .* costs 13 \(conv\(width=3\) x1"
    ):
        require_possible(Budget.of({"flops": 12}), {"flops": UNEVEN}, SPACE)


def test_budget_in_a_config(tiny):
    configs.override(tiny, {"search.budget.parameters": "1e6", "search.budget.batch": 2})
    assert tiny.search.budget.to_dict() == {"parameters": 1e6, "batch": 2}
    again = configs.from_dict(configs.to_dict(tiny))
    assert configs.editable(again).to_dict() == tiny.to_dict()
    configs.override(tiny, {"search.budget": "flops=1e5,phase=train"})
    assert tiny.search.budget.to_dict() == {"flops": 1e5, "phase": "train"}
    for name, reason in (
        ("spos", "learns no alphas"),
        ("race", "trains no supernet"),
        ("sigmoid", "not a distribution"),
    ):
        configs.override(tiny, {"search.strategy.name": name})
        with pytest.raises(InputError, match=reason):
            configs.build(tiny)


@pytest.mark.parametrize("phase", ["forward", pytest.param("train", marks=pytest.mark.slow)])
def test_memory_of_a_mixed_genotype_is_that_of_xla(phase, compile_quickly):
    """Exact for homogeneous models, by how it is found; here layers and heads are mixed."""
    config = TransformerConfig(20, 10, 96, layers=2, heads=2, head_dim=8, model_dim=16, mlp_dim=32)
    space = SearchSpace(tuple(parse(t) for t in ("full", "linear")), 2, 2, "head")
    price = prices(config, space, Budget.of({"memory_bytes": 1e9, "batch": 4, "phase": phase}))[
        "memory_bytes"
    ]
    for choice in ([[0, 0], [1, 1]], [[0, 1], [1, 1]]):
        genotype = space.genotype(np.array(choice))
        measured = temp_bytes(config, genotype, batch=4, phase=phase)
        assert price.of(genotype, space) == pytest.approx(measured, rel=0.1)
