"""Granularity "kv_group": the heads that share keys and values choose together."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dartformer as df
from dartformer.attention import parse
from dartformer.config import override
from dartformer.cost.analytic import attention_cost
from dartformer.cost.budget import Budget, Price
from dartformer.cost.integer_program import solve
from dartformer.cost.prices import prices
from dartformer.diagnostics import rows
from dartformer.models.sizes import TransformerConfig
from dartformer.space.search_space import SearchSpace, everywhere
from dartformer.strategies import relax

CANDIDATES = tuple(parse(text) for text in ("full", "local(window=2)", "linear"))
SPACE = SearchSpace(CANDIDATES, 2, 4, "kv_group", kv_heads=2)
RNG = np.random.default_rng(0)
UNEVEN = Price("kv_bytes", 5.0, RNG.integers(1, 30, (3, 5)).astype(float))


def choices():
    for choice in itertools.product(range(3), repeat=4):
        yield np.reshape(choice, (2, 2))


def test_heads_of_a_group_choose_together():
    assert SPACE.alphas_shape == (2, 2, 3)
    assert SPACE.size == 3**4
    genotype = SPACE.genotype(np.array([[0, 1], [2, 0]]))
    full, local, linear = CANDIDATES
    assert genotype.layers == ((full, full, local, local), (linear, linear, full, full))
    assert np.array_equal(SPACE.free(SPACE.choice(genotype)), [[0, 1], [2, 0]])
    assert SPACE.place_name((1, 0)) == "layer 1, KV group 0"
    for layers in SPACE.random(np.random.default_rng(1)).layers:
        assert layers[0] == layers[1]
        assert layers[2] == layers[3]


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 2), (2, 4), (1, 2)])
def test_rows_are_repeated_where_they_are_shared(shape):
    alphas = RNG.normal(size=(*shape, 3))
    grid = everywhere(alphas, (2, 4))
    for layer, head in np.ndindex(2, 4):
        row = alphas[layer * shape[0] // 2, head * shape[1] // 4]
        assert np.array_equal(grid[layer, head], row)
    mixture = relax.everywhere(jnp.asarray(alphas, jnp.float32), (2, 4, 3))
    assert np.allclose(mixture, grid)
    # The gradient of a row is the sum over all that share it.
    gradient = jax.grad(lambda a: relax.everywhere(a, (2, 4, 3)).sum())(jnp.asarray(alphas))
    assert np.allclose(gradient, 8 / np.prod(shape))


def test_a_place_is_the_cells_of_its_group():
    covered = np.zeros((2, 4), int)
    for place in np.ndindex(2, 2):
        covered[SPACE.cells(place)] += 1
    assert (covered == 1).all()


def test_expected_cost_is_the_mean_over_all_genotypes():
    mixture = RNG.dirichlet(np.ones(3), (2, 2))
    mean = 0.0
    for choice in choices():
        odds = np.prod([mixture[place][choice[place]] for place in np.ndindex(2, 2)])
        mean += odds * UNEVEN.of(SPACE.genotype(choice), SPACE)
    with jax.enable_x64(True):
        expected = UNEVEN.expected(jnp.asarray(everywhere(mixture, (2, 4))), columns=2)
    assert float(expected) == pytest.approx(mean)


def test_the_cheapest_and_the_best_within_a_limit_by_trying_all():
    costs = {}
    scores = RNG.normal(size=(2, 2, 3))
    for choice in choices():
        costs[tuple(choice.ravel())] = UNEVEN.of(SPACE.genotype(choice), SPACE)
    assert UNEVEN.cheapest(SPACE)[0] == min(costs.values())
    assert UNEVEN.most_expensive(SPACE)[0] == max(costs.values())
    for limit in np.quantile(list(costs.values()), (0.05, 0.3, 0.7)):
        merits = {}
        for choice, cost in costs.items():
            if cost <= limit:
                merits[choice] = sum(
                    scores[place][k] for place, k in zip(np.ndindex(2, 2), choice, strict=True)
                )
        solved = solve(SPACE, scores, [(UNEVEN, float(limit))])
        assert tuple(solved.ravel()) == max(merits, key=merits.__getitem__)


def test_diagnostics_count_a_group_once():
    mixture = everywhere(RNG.dirichlet(np.ones(3), (2, 2)), (2, 4))
    assert rows(mixture, SPACE).entropy.shape == (2, 2)


def test_the_price_of_a_group_is_that_of_its_cache():
    config = TransformerConfig(
        20, 10, 32, layers=2, heads=4, kv_heads=2, head_dim=4, model_dim=8, mlp_dim=16
    )
    budget = Budget.of({"kv_bytes": 1e9})
    price = prices(config, SPACE, budget)["kv_bytes"]
    full = 2 * 32 * 4 * 4  # keys and values of a KV head, float32
    window = 2 * 3 * 4 * 4  # of a token and the two before it
    space = SearchSpace(CANDIDATES[:2], 2, 4, "kv_group", kv_heads=2)
    for choice in itertools.product(range(2), repeat=4):
        genotype = space.genotype(np.reshape(choice, (2, 2)))
        expected = sum((full, window)[k] for k in choice)
        assert price.of(genotype, SPACE) == expected
        kept = sum(attention_cost(config, genotype, layer).state_bytes for layer in range(2))
        assert kept == expected


def test_a_run_by_group(tiny, tmp_path):
    values = {
        "model.heads": 4,
        "model.kv_heads": 2,
        "space.candidates": ("full", "local(window=2)"),
        "space.granularity": "kv_group",
        "search.budget": {"kv_bytes": 7000},
        "race.neighbours": 1,
    }
    override(tiny, values)
    results = df.run_all(tiny, tmp_path / "run")
    for heads in results["genotype"]["layers"]:
        assert heads[0] == heads[1]
        assert heads[2] == heads[3]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "in each of 2 KV groups of 2 layers" in page
