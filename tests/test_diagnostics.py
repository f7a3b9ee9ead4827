"""Each diagnosis: its number on cases that can be computed by hand, and its verdict in both
directions."""

import itertools

import numpy as np
import pytest
import scipy.stats

from dartformer import diagnostics, statistics
from dartformer.attention import parse
from dartformer.cli import terminal
from dartformer.results import SeedScores
from dartformer.space.search_space import SearchSpace
from dartformer.training.metric import ACCURACY, BITS_PER_CHARACTER

SPACE = SearchSpace(
    tuple(map(parse, ("full", "local(window=4)", "identity", "uniform"))), 2, 1, "layer"
)


def mixtures(*first_rows):
    """`[S, 2, 1, 4]`: layer 0 as given for each seed, layer 1 sure of `full`."""
    return np.array([[[row], [(0.97, 0.01, 0.01, 0.01)]] for row in first_rows])


def test_entropy_and_margin_of_rows():
    found = diagnostics.rows(np.array([[[0.25] * 4], [[0.5, 0.5, 0, 0]]]), SPACE)
    np.testing.assert_allclose(found.entropy, [[1.0], [0.5]])
    np.testing.assert_allclose(found.margin, [[0], [0]])
    gates = diagnostics.rows(np.array([[[0.5] * 4], [[1, 0.5, 1, 0]]]), SPACE, simplex=False)
    np.testing.assert_allclose(gates.entropy, [[1.0], [0.25]])
    np.testing.assert_allclose(gates.margin, [[0], [0]])


@pytest.mark.parametrize(
    ("row", "fine", "says"),
    [
        ((0.28, 0.24, 0.24, 0.24), False, "hardly moved"),
        ((0.6, 0.2, 0.1, 0.1), True, "several candidates remain"),
        ((0.97, 0.01, 0.01, 0.01), True, "have decided"),
    ],
)
def test_entropy_says_whether_the_alphas_moved(row, fine, says):
    both = np.array([[[row], [row]]])
    found = diagnostics.entropy(both, SPACE)
    assert found.fine == fine
    assert says in found.verdict


@pytest.mark.parametrize(
    ("rows", "fine", "says"),
    [
        (
            [(0.4, 0.1, 0.38, 0.12)],
            False,
            "layer 0: full and identity are tied (their margin 0.02 is within the tie margin 0.05)",
        ),
        ([(0.6, 0.2, 0.1, 0.1)], True, "every choice is clear (smallest margin 0.40)"),
        # Over the seeds the margin is 0.1 on average and its spread 0.2 * sqrt(2): one seed is the
        # other way round.
        (
            [(0.55, 0.25, 0.1, 0.1), (0.35, 0.45, 0.1, 0.1)],
            False,
            "layer 0: full and local(window=4) are tied (their margin 0.10 is within seed noise 0.28)",
        ),
        ([(0.6, 0.2, 0.1, 0.1), (0.62, 0.2, 0.1, 0.08)], True, "smallest margin 0.41"),
    ],
)
def test_margin_is_held_against_the_seeds(rows, fine, says):
    found = diagnostics.margin(mixtures(*rows), SPACE, 0.05)
    assert found.fine == fine
    assert says in found.verdict
    assert (found.value <= found.threshold) == (not fine)


@pytest.mark.parametrize(
    ("rows", "fine", "says"),
    [
        (
            [(0.6, 0.2, 0.1, 0.1)],
            False,
            "1 of 2 choices is undecided: the top weight of layer 0 is 0.60 (threshold 0.75)",
        ),
        (
            [(0.8, 0.1, 0.05, 0.05)],
            True,
            "every choice is decided: the smallest top weight is 0.80",
        ),
        ([(0.9, 0.1, 0, 0), (0.1, 0.9, 0, 0)], False, "layer 0 is 0.50"),
    ],
)
def test_decision(rows, fine, says):
    found = diagnostics.decision(mixtures(*rows), SPACE)
    assert found.fine == fine
    assert says in found.verdict


def test_an_undecided_search_of_many_candidates_is_told_of_sampling():
    many = SearchSpace(tuple(parse(f"local(window={2 * i})") for i in range(1, 9)), 1, 1, "layer")
    assert "With 8 candidates" in diagnostics.decision(np.full((1, 1, 1, 8), 1 / 8), many).verdict
    assert "spos" not in diagnostics.decision(np.eye(8)[None, None, :1], many).verdict
    assert "spos" not in diagnostics.decision(mixtures((0.6, 0.2, 0.1, 0.1)), SPACE).verdict


def test_margin_names_some_places_and_counts_the_rest():
    space = SearchSpace(SPACE.candidates, 5, 1, "layer")
    found = diagnostics.margin(np.full((1, 5, 1, 4), 0.25), space, 0.05)
    assert found.verdict.count("are tied") == diagnostics.NAMED
    assert found.verdict.endswith("; and 2 more")


@pytest.mark.parametrize(
    ("winners", "value", "fine"),
    [
        ((0, 0, 0, 1), 0.75, True),
        ((0, 0, 1, 2), 0.5, False),
        ((2, 2), 1.0, True),
        ((0,), None, None),
    ],
)
def test_seeds_agree_or_not(winners, value, fine):
    found = diagnostics.agreement(mixtures(*np.eye(4)[list(winners)]), SPACE)
    assert (found.value, found.fine) == (value, fine)


@pytest.mark.parametrize(
    ("hard", "fine", "says"),
    [
        ((0.8, 0.82), False, "costs 9.0 points"),
        ((0.88, 0.9), True, "costs little"),
        ((1, 1), True, "gains 10.0"),
    ],
)
def test_discretisation(hard, fine, says):
    found = diagnostics.discretisation((0.9, 0.9), hard)
    assert found.value == pytest.approx(0.9 - np.mean(hard))
    assert found.fine == fine
    assert says in found.verdict


def test_of_a_search():
    def evaluate(seed, mixture):
        return {"loss": 1.0 + seed, "accuracy": float(mixture[0, 0, 0])}

    rows = (0.8, 0.2, 0.0, 0.0), (0.9, 0.1, 0.0, 0.0)
    data = diagnostics.of_search(mixtures(*rows), SPACE, evaluate, 0.05)
    assert data.valid_soft == pytest.approx({"loss": 1.5, "accuracy": 0.85})
    assert data.valid_discrete["accuracy"] == 1.0
    assert data.discretisation_gap == pytest.approx(-0.15)
    assert {k: v["accuracy"] for k, v in data.alone.items()} == {
        "full": 1,
        "local(window=4)": 0,
        "identity": 0,
        "uniform": 0,
    }
    assert data.seeds.valid_discrete == SeedScores(1.0, 0.0, (1.0, 1.0))
    assert [finding.name for finding in data.findings] == [
        "entropy",
        "decision",
        "margin",
        "seeds",
        "discretisation",
    ]
    assert all(finding.source for finding in data.findings)
    assert data.verdicts[0].startswith("no warning")
    tied = diagnostics.of_search(mixtures((0.3, 0.3, 0.2, 0.2)), SPACE, evaluate, 0.05)
    assert len(tied.verdicts) == 2
    assert "are tied" in tied.verdicts[1]
    blind = diagnostics.of_search(np.full((1, 2, 1, 4), 0.25), SPACE, evaluate, 0.05, learned=False)
    assert "learns no architecture weights" in blind.verdicts[0]
    assert blind.valid_discrete is None


def test_the_terminal_shows_every_verdict(capsys, tmp_path):
    data = diagnostics.of_search(
        mixtures((0.3, 0.3, 0.2, 0.2)), SPACE, lambda *_: {"loss": 1.0, "accuracy": 0.5}, 0.05
    )
    terminal.show("search", {"diagnostics": data.to_dict(), "seconds": 1.0}, tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    for mark, one in zip(("ok", "WARNING", "WARNING", "?", "ok"), data.findings, strict=True):
        assert f"{mark} {one.name}" in shown
    terminal.show(
        "search",
        {"diagnostics": {"findings": [], "verdicts": ["nothing"]}, "seconds": 1.0},
        tmp_path,
    )
    assert "nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rms", "norm", "fine", "says"),
    [
        ((1, 1, 2, 1), False, True, "the loudest has 2.0 times"),
        (
            (1, 1, 40, 1),
            False,
            False,
            "identity in layer 0 has 40 times the median RMS of its layer. The mixture then measures",
        ),
        ((1, 1, 40, 1), True, True, "which model.branch_norm evens out"),
        ((1, 1e-4, 1, 1), True, False, "local(window=4) in layer 0 is dead (RMS 0.0001)"),
    ],
)
def test_loudness(rms, norm, fine, says):
    found = diagnostics.loudness(np.array([rms, (1, 1, 1, 1)]), SPACE, norm)
    assert found.fine == fine
    assert says in found.verdict


def test_a_loud_branch_of_a_checkpoint_is_not_answered_with_a_norm_it_cannot_have():
    rms = np.array([(1, 1, 1, 1000), (1, 1, 1, 1)])
    result = diagnostics.loudness(rms, SPACE, False, start="all-MiniLM-L6-v2")
    assert not result.fine
    assert result.verdict.endswith("measures scale: leave it out of space.candidates")


@pytest.mark.parametrize(
    ("gradient", "fine", "says"),
    [
        (
            (3, 1, 0, 0),
            True,
            "every branch learns (the smallest gradient is 0.5 of the median of its layer)",
        ),
        ((3, 1e-3, 0, 0), False, "the queries and keys of local(window=4) in layer 0 hardly learn"),
        ((3, np.nan, 0, 0), None, "nothing to compare"),
    ],
)
def test_learning(gradient, fine, says):
    found = diagnostics.learning(np.array([gradient, (1, np.nan, 0, 0)]), SPACE)
    assert found.fine == fine
    assert says in found.verdict


@pytest.mark.parametrize(
    ("values", "growth", "fine"),
    [
        ([1.0, 1.2], 1.1, True),
        ([1.0, 2.0], 1.5, False),
        ([4, 3, 2, 1], 0.625, True),
        ([1.0], None, None),
        # Averages over five: the last (3 + 4 + 5 + 6 + 7) / 5, four evaluations ago (1 + 2 + 3) /
        # 3.
        ([1, 2, 3, 4, 5, 6, 7], 2.5, False),
        ([-1.0, 1.0], None, None),
    ],
)
def test_curvature(values, growth, fine):
    found = diagnostics.curvature(values)
    assert found.value == (growth if growth is None else pytest.approx(growth))
    assert found.fine == fine


def test_kendall_tau_is_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 9):
        a, b = rng.integers(0, 5, (2, n)).tolist()
        want = scipy.stats.kendalltau(a, b).statistic
        np.testing.assert_allclose(statistics.kendall_tau(a, b), want, atol=1e-12)
    assert statistics.kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("n", "tau"), [(2, None), (3, None), (4, 1.0), (5, 0.8), (6, 11 / 15), (7, 13 / 21)]
)
def test_critical_tau_by_counting_orders(n, tau):
    """Kendall's table, checked against every order of so few."""
    assert statistics.critical_tau(n) == (None if tau is None else pytest.approx(tau))
    if tau is not None:
        orders = itertools.permutations(range(n)) if n < 7 else ()
        taus = np.array([statistics.kendall_tau(range(n), order) for order in orders])
        next_lower = tau - 4 / (n * (n - 1))
        assert not taus.size or np.mean(taus > tau - 1e-9) <= 0.05 < np.mean(
            taus > next_lower - 1e-9
        )


@pytest.mark.parametrize(
    ("supernet", "fine", "says"),
    [
        (
            (4, 3, 2, 1),
            True,
            "ranks candidates as training each one alone does (Kendall's tau 1.00). Its top choice, a, is 0.0 points",
        ),
        (
            (1, 2, 3, 4),
            None,
            "(Kendall's tau -1.00; with 4 candidates only 1.00 would be significant). Its top choice, d",
        ),
        ((4, 3, 1, 2), None, "does not agree significantly with training each candidate alone"),
        ((1, 1, 1, 1), None, "all scores are equal"),
        ((3, 2, 1), None, "3 candidates are too few"),
    ],
)
def test_ranking(supernet, fine, says):
    names = "abcd"[: len(supernet)]
    found = diagnostics.ranking(
        dict(zip(names, supernet, strict=True)),
        {name: [0.9 - 0.1 * i, 0.92 - 0.1 * i] for i, name in enumerate(names)},
    )
    assert found.fine == fine
    assert says in found.verdict


@pytest.mark.parametrize(
    ("train", "valid", "test", "fine", "says"),
    [
        (0.0, 0.0, 0.0, True, "at most 0% unknown"),
        (0.05, 0.06, 0.07, True, "at most 7% unknown"),
        (0.0, 0.02, 0.11, False, "11% of the tokens of test are unknown (0% of train)"),
        (0.0, 0.04, 0.0, False, "4% of the tokens of valid are unknown (0% of train)"),
        (
            0.2,
            0.95,
            0.96,
            False,
            "95% of the tokens of valid are unknown; 96% of the tokens of test",
        ),
    ],
)
def test_tokens_that_the_model_does_not_know(train, valid, test, fine, says):
    finding = diagnostics.unknown_tokens({"train": train, "valid": valid, "test": test})
    assert (finding.fine, finding.value) == (fine, max(valid, test))
    assert says in finding.verdict
    assert (finding.verdict in diagnostics.verdicts([finding])) == (not fine)


def test_labels_of_words_leave_no_choice_of_tokens():
    """`bpe` would be refused there."""
    shares = {"train": 0.0, "valid": 0.3, "test": 0.3}
    assert "'bpe'" in diagnostics.unknown_tokens(shares).verdict
    assert "'bpe'" not in diagnostics.unknown_tokens(shares, of_words=True).verdict


def test_paired_bootstrap_sees_through_the_spread_that_pairs_share():
    """Both err on the same examples, one of them on a few more: the difference is real."""
    rng = np.random.default_rng(0)
    easy = rng.random(400) < 0.7
    better = np.array([easy | (rng.random(400) < 0.2) for _ in range(2)], float)
    plain = np.array([easy, easy], float)
    found = statistics.paired_bootstrap(better, plain, samples=300)
    assert found.low > 0
    assert found.p <= 2 / 300
    assert found.difference == pytest.approx(better.mean() - plain.mean())
    same = statistics.paired_bootstrap(plain, plain, samples=50)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_the_verdict_says_which_homogeneous_model_it_compares_with():
    """The best on valid, which is another one where the found model is homogeneous itself."""
    from dartformer.results import Results
    from dartformer.stages.evaluate import versus

    def scored(heads, valid):
        return {
            "test": {"accuracy": 0.5, "spread": 0, "per_seed": [0.5], "loss": 1, "examples": 80},
            "valid": {"accuracy": valid, "per_seed": [valid]},
            "parameters": 10,
            "flops": 1e3,
            "steps": 8,
            "genotype": {"format": 1, "layers": [heads]},
        }

    full, linear = scored(["full", "full"], 0.4), scored(["linear", "linear"], 0.6)
    baselines = {"homogeneous.full": full, "homogeneous.linear": linear}
    sentences = []
    for found in (scored(["full", "linear"], 0.5), full, linear):
        results = Results.from_dict({"task": "listops", **found, "baselines": baselines})
        sentences.append(versus(results.found, results.baselines)[0].sentence)
    assert "the best homogeneous model on valid (linear everywhere)" in sentences[0]
    assert (
        "which is homogeneous itself, and the best other homogeneous model on valid" in sentences[1]
    )
    assert sentences[2] == (
        "the found model is the best homogeneous model on valid (linear everywhere)"
    )


@pytest.mark.parametrize("metric", [ACCURACY, BITS_PER_CHARACTER])
def test_a_model_that_scores_as_a_rule_is_neither_better_nor_worse(metric):
    from dartformer.results import Results
    from dartformer.stages.evaluate import versus

    test = {"spread": 0, "per_seed": [0.5], "loss": 1, "examples": 80, metric.name: 0.5}
    model = {
        "test": test,
        "valid": {metric.name: 0.5, "per_seed": [0.5]},
        "parameters": 10,
        "flops": 1e3,
        "steps": 8,
        "genotype": {"format": 1, "layers": [["full"]]},
    }
    baselines = {"rule": {"test": {metric.name: 0.5}}}
    results = Results.from_dict({"task": "listops", **model, "baselines": baselines})
    (comparison,) = versus(results.found, results.baselines, metric)
    assert comparison.outcome == "undecided"
    assert "scores the same as the rule 'rule'" in comparison.sentence
