"""Derivations on toys: a table of worths instead of a supernet, so that the right answer is
known."""

import numpy as np
import pytest

from dartformer.attention import parse as attention
from dartformer.derivations import DERIVATIONS, parse
from dartformer.derivations.base import Trained, difference
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

CANDIDATES = tuple(
    attention(c) for c in ("full", "local(window=1)", "retention", "uniform", "identity")
)
LAYERS, HEADS, K, EXAMPLES = 3, 4, len(CANDIDATES), 400
BEST = 2


class Toy:
    """A supernet whose accuracy is the mean of `worth` [L, H, K] over its mixture, plus noise for
    each example."""

    def __init__(self, worth, noise=0.0, granularity="layer", mixture=None):
        self.space = SearchSpace(CANDIDATES, LAYERS, HEADS, granularity)
        self.worth = np.broadcast_to(np.asarray(worth, float), (LAYERS, HEADS, K))
        self.noise = noise * np.random.default_rng(1).standard_normal((EXAMPLES, LAYERS, HEADS, K))
        self.mixture = (
            np.full((LAYERS, HEADS, K), 1 / K, np.float32) if mixture is None else mixture
        )
        self.calls, self.tuned = [], []

    def evaluate(self, weights, mixture, examples):
        assert mixture.shape == (LAYERS, HEADS, K)
        self.calls.append((mixture.copy(), examples))
        values = ((self.worth + self.noise) * mixture).mean((1, 2)).sum(-1)[:examples]
        return {"accuracy": values, "loss": 1 - values}

    def fine_tune(self, weights, mixture, steps, seed):
        self.tuned.append((mixture.copy(), steps, seed))
        return weights + 1

    def trained(self, seed=0):
        return Trained(
            self.space,
            self.mixture,
            0,
            self.evaluate,
            self.fine_tune,
            np.random.default_rng(seed),
        )

    def derive(self, rule, seed=0):
        return parse(rule)(self.trained(seed))


def worth(best=BEST):
    return np.linspace(0.1, 0.2, K) + 0.5 * np.eye(K)[best]


@pytest.mark.parametrize(
    "rule",
    [
        "masked_drop",
        "masked_drop(metric='accuracy', renormalise=True, order='given')",
        "masked",
        "sample(count=1500)",
        "evolution",
        "random_search",
        "evolution(metric='loss', generations=30)",
    ],
)
@pytest.mark.parametrize("granularity", ["model", "layer", "head"])
def test_finds_the_best_arm(rule, granularity):
    if granularity == "head" and rule.startswith(("sample", "random_search")):
        pytest.skip("5^12 genotypes are too many to meet the best one by chance")
    toy = Toy(worth(), 0.01, granularity)
    found = toy.derive(rule)
    assert found.genotype == Genotype.homogeneous(CANDIDATES[BEST], LAYERS, HEADS)
    assert found.ties == []


@pytest.mark.parametrize("rule", ["masked_drop", "evolution(generations=40)"])
def test_finds_a_different_arm_in_each_head(rule):
    best = np.random.default_rng(5).integers(K, size=(LAYERS, HEADS))
    toy = Toy(0.2 + 0.5 * np.eye(K)[best], 0.01, "head")
    assert (toy.space.choice(toy.derive(rule).genotype) == best).all()


def test_masked_drop_disagrees_with_argmax_where_the_weights_mislead():
    """The largest weight is on an arm that is worth nothing: argmax takes it, masked drop does
    not."""
    mixture = np.full((LAYERS, HEADS, K), 0.1, np.float32)
    mixture[..., 0] = 0.6
    toy = Toy(np.eye(K)[BEST], mixture=mixture)
    assert toy.space.choice(toy.derive("argmax").genotype).max() == 0
    assert (toy.space.choice(toy.derive("masked_drop").genotype) == BEST).all()


def test_of_equals_masked_drop_can_keep_the_largest_weight():
    """Two arms are worth the same; noise puts one before the other, the alphas know better. A third
    one's weight is the largest, but it is worth less."""
    mixture = np.full((LAYERS, HEADS, K), 0.05, np.float32)
    mixture[..., 1], mixture[..., 3], mixture[..., 0] = 0.2, 0.3, 0.4
    toy = Toy(np.array([0.2, 0.9, 0.2, 0.6, 0.2]), mixture=mixture)  # 0.2 * 0.9 = 0.3 * 0.6
    assert (toy.space.choice(toy.derive("masked_drop(equals='weight')").genotype) == 3).all()
    toy = Toy(np.array([0.2, 0.95, 0.2, 0.6, 0.2]), mixture=mixture)
    assert (toy.space.choice(toy.derive("masked_drop(equals='weight')").genotype) == 1).all()


def test_masked_drop_fixes_each_place_before_the_next_and_fine_tunes_between():
    toy = Toy(worth())
    toy.derive("masked_drop(fine_tune=7, order='given')")
    assert [steps for _, steps, _ in toy.tuned] == [
        7,
        7,
    ]  # nothing is left to decide after the last
    assert len({seed for *_, seed in toy.tuned}) == 2
    for decided, (mixture, *_) in enumerate(toy.tuned, 1):
        np.testing.assert_array_equal(
            mixture[:decided], np.broadcast_to(np.eye(K)[BEST], (decided, HEADS, K))
        )
        np.testing.assert_allclose(mixture[decided:], 1 / K)
    masks = [
        m for m, _ in toy.calls if (m == 0).sum() == HEADS
    ]  # one candidate of the first place is masked
    assert len(masks) == K
    toy.calls.clear()
    toy.derive("masked_drop(fine_tune=0)", seed=3)
    assert len(toy.tuned) == 2
    first_masked = next(m for m, _ in toy.calls if (m == 0).any())
    assert (first_masked[0] != 0).all()  # a random order, which does not begin with layer 0 here


def test_renormalise():
    toy = Toy(worth())
    toy.derive("masked_drop(renormalise=True, fine_tune=0)")
    for mixture, _ in toy.calls:
        np.testing.assert_allclose(mixture.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        "argmax",
        "masked_drop",
        "masked_drop(metric='accuracy')",
        "masked",
        "best_four(keep=3)",
        "prune(keep=3)",
        "sample",
        "evolution",
        "random_search",
    ],
)
def test_a_tie_of_all_is_reported(rule):
    """Nothing tells the arms apart: each rule says so, with and without noise in the examples."""
    for noise in (0.0, 0.3):
        toy = Toy(np.full(K, 0.5), noise)
        found = toy.derive(rule)
        assert found.ties, noise
    if rule.startswith("masked_drop"):
        assert all(
            "no significant preference" in line for line in Toy(np.full(K, 0.5)).derive(rule).ties
        )
        assert len(Toy(np.full(K, 0.5)).derive(rule).ties) == LAYERS
    if rule == "masked":
        assert "no candidate is missed" in Toy(np.zeros(K)).derive(rule).ties[-1]


def test_a_tie_of_two_names_the_two():
    toy = Toy(np.array([0.1, 0.6, 0.6, 0.1, 0.1]), granularity="model")
    assert toy.derive("masked_drop").ties == [
        "everywhere: local(window=1) and retention are tied (removing them costs "
        "0.1200, 0.1200 of loss)"
    ]
    assert "local(window=1) and retention are tied" in toy.derive("masked").ties[0]


def test_best_four_and_prune_spread_the_same_set_over_the_heads_of_every_layer():
    toy = Toy(np.array([0.1, 0.3, 0.5, 0.2, 0.4]))
    for rule, steps in (("best_four(keep=2)", []), ("prune(keep=2, fine_tune=9)", [9] * 3)):
        found = toy.derive(rule)
        want = [[2, 4, 2, 4]] * LAYERS
        assert (toy.space.choice(found.genotype) == want).all()
        assert found.details["kept"] == ["retention", "identity"]
        assert [s for _, s, _ in toy.tuned] == steps
        for mixture, *_ in toy.tuned:
            np.testing.assert_allclose(mixture.sum(-1), 1, atol=1e-6)
    assert [step["removed"] for step in found.details["removed"]] == [
        "full",
        "uniform",
        "local(window=1)",
    ]


def test_prune_sees_what_fine_tuning_changes():
    """Two arms that stand in for each other: neither is missed until the other is gone."""
    toy = Toy(worth())

    def evaluate(weights, mixture, examples):
        present = mixture[0, 0] > 0
        value = (
            0.5 * (present[0] or present[1])
            + 0.3 * present[2]
            + 0.1 * present[3]
            + 0.05 * present[4]
        )
        return {"accuracy": np.full(5, value) + 1e-6 * np.arange(5), "loss": np.zeros(5)}

    toy.evaluate = evaluate
    kept = toy.derive("prune(keep=2, fine_tune=0)").details["kept"]
    assert kept == ["local(window=1)", "retention"]
    assert toy.derive("best_four(keep=2)").details["kept"] == ["retention", "uniform"]


def test_random_search_has_two_rounds():
    toy = Toy(worth(), 0.01)
    toy.derive("random_search(count=30, batch=50, top=4)")
    rounds = [examples for _, examples in toy.calls]
    assert rounds.count(None) == 4
    assert set(rounds) == {50, None}
    assert rounds.count(50) == len({m.tobytes() for m, e in toy.calls if e == 50}) <= 30


def test_evolution_scores_nothing_twice_and_stops_when_the_space_is_used_up():
    toy = Toy(worth(), granularity="layer")
    found = toy.derive(
        "evolution(population=20, mutations=10, crossovers=10, generations=100, probability=0.5)"
    )
    assert (
        len(toy.calls)
        == len({m.tobytes() for m, _ in toy.calls})
        == found.details["scored"]
        <= K**LAYERS
    )
    assert found.details["best_by_generation"] == sorted(found.details["best_by_generation"])


def test_sample_follows_the_mixture():
    mixture = np.broadcast_to(np.array([0.0, 0.5, 0.5, 0.0, 0.0], np.float32), (LAYERS, HEADS, K))
    toy = Toy(worth(0), mixture=mixture)
    assert set(np.unique(toy.space.choice(toy.derive("sample(count=50)").genotype))) <= {1, 2}
    assert len(toy.calls) == 8


@pytest.mark.parametrize(
    "name", [n for n in DERIVATIONS if n not in ("best_four", "prune", "race")]
)
def test_the_same_seed_gives_the_same_genotype(name):
    first, second = (Toy(worth(), 0.5).derive(name, seed=4) for _ in range(2))
    assert first == second


def test_difference_is_paired():
    rng = np.random.default_rng(0)
    shared, small = rng.standard_normal(1000), 0.01 * rng.standard_normal(1000)
    gap, noise = difference(shared + 0.01 + small, shared)
    assert gap > noise > 0
    assert 0.3 < noise / (0.01 * 1.96 / 1000**0.5) < 1.1
    assert difference(np.array([0.3]), np.array([0.1])) == (pytest.approx(0.2), 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("masked_dorp", "unknown derivation 'masked_dorp'. Did you mean 'masked_drop'?"),
        ("masked_drop(metric='acc')", "unknown masked_drop: metric 'acc'"),
        ("sample(count=0)", "count must be at least 1"),
        ("masked_drop(equals='first')", "unknown masked_drop: equals"),
        ("masked_drop(order='first')", "unknown masked_drop: order"),
        ("prune(keep=0)", "keep must be at least 1"),
        ("evolution(mutations=40)", "are more than population=50"),
        ("evolution(probability=0.0)", "above 0"),
        ("argmax(2)", "argmax takes 0 options"),
        ("masked_drop(", "cannot read derivation"),
    ],
)
def test_bad_rules(text, message):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_more_kept_than_there_is_room_for():
    for rule, message in (
        ("best_four(keep=5)", "keep=5 attentions, but the space has 5 candidates and 4 heads"),
        ("prune(keep=5)", "prune: keep=5"),
        ("top_k(k=6)", "k=6, but the space has 5 candidates"),
    ):
        with pytest.raises(InputError, match=message):
            parse(rule).check(Toy(worth()).space)
    for name, cls in DERIVATIONS.items():
        cls().check(Toy(worth()).space)
        assert parse(name) == cls()


def test_top_k_keeps_the_largest_weights_in_parallel():
    mixture = np.broadcast_to(np.array([0.1, 0.4, 0.2, 0.01, 0.29], np.float32), (LAYERS, HEADS, K))
    toy = Toy(worth(), granularity="head", mixture=mixture)
    found = toy.derive("top_k(k=3)")
    (one,) = set(sum(found.genotype.layers, ()))
    assert (
        repr(one)
        == "parallel(members=(local(window=1), retention, identity), shares=(0.4494, 0.2247, 0.3258))"
    )
    assert Genotype.from_json(found.genotype.to_json()) == found.genotype
    want = np.array([0, 0.4, 0.2, 0, 0.29]) / 0.89
    np.testing.assert_allclose(toy.space.mixture(found.genotype)[1, 2], want, atol=2e-4)
    assert toy.derive("top_k").ties == []
    assert len(toy.derive("top_k(k=3)").ties) == 0
    assert toy.derive("top_k(k=5)").ties == []
    near = Toy(
        worth(), mixture=np.broadcast_to(np.array([0.3, 0.28, 0.27, 0.1, 0.05]), (LAYERS, HEADS, K))
    )
    assert near.derive("top_k").ties[0] == (
        "layer 0: local(window=1), kept, and retention, left out, are tied (0.28, 0.27)"
    )
    one_hot = Toy(worth(), mixture=np.broadcast_to(np.eye(K)[3], (LAYERS, HEADS, K)))
    assert one_hot.derive("top_k").genotype == Genotype.homogeneous(CANDIDATES[3], LAYERS, HEADS)
