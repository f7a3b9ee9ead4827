"""Every number is finite or declared undefined, and every rate that is logged is the rate taken."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartformer import config as configs
from dartformer import diagnostics, statistics
from dartformer.data.splits import ArraySplit, Subset
from dartformer.derivations.base import largest, merit, ranked, tied_with
from dartformer.errors import InputError
from dartformer.space.genotype import parse_candidates
from dartformer.space.search_space import SearchSpace
from dartformer.strategies import Problem, make
from dartformer.tasks import simple
from dartformer.tasks.base import majority
from dartformer.tasks.language import Language, Windows
from dartformer.tasks.planted import Planted
from dartformer.training import optimizer
from dartformer.training.log import MetricsLog
from dartformer.training.metric import METRICS, UNDEFINED, Losses, Spelled, of_task

quick = settings(derandomize=True, max_examples=15, deadline=None)

SHARES = st.sampled_from([0.0, 0.02, 0.05, 0.3, 0.5, 1.0])
OPTIMIZERS = st.builds(
    optimizer.Optimizer,
    name=st.just("sgd"),
    learning_rate=st.sampled_from([1e-4, 0.1, 1.0]),
    schedule=st.sampled_from(optimizer.SCHEDULES),
    warmup=SHARES,
    final=SHARES,
    weight_decay=st.just(0.0),
    clip=st.just(0.0),
    momentum=st.just(0.0),
)


ODD = st.sampled_from([0.0, -1.0, 0.1, 1.0, 1e-30, 1e300, 0.5, math.nan, math.inf])


def defined(value):
    """Whether a number is one; NaN is what is declared undefined, and infinity is neither."""
    assert not math.isinf(value)
    return not math.isnan(value)


# Rates.


@quick
@given(OPTIMIZERS, st.integers(1, 40))
def test_every_step_takes_the_rate_of_the_schedule(options, steps):
    chain, rate = optimizer.build(options, steps), optimizer.schedule(options, steps)
    state = chain.init(jnp.zeros(()))
    for step in range(steps + 3):
        updates, state = chain.update(jnp.ones(()), state, jnp.zeros(()))
        assert -float(updates) == pytest.approx(float(rate(step)))
        assert 0 <= float(rate(step)) <= options.learning_rate * (1 + 1e-6)
    assert float(rate(0)) > 0
    warmup = round(options.warmup * steps)
    if options.schedule != "rsqrt" and warmup:
        assert float(rate(0)) == pytest.approx(options.learning_rate / warmup)
        assert float(rate(warmup - 1)) == pytest.approx(options.learning_rate)


@quick
@given(
    OPTIMIZERS,
    st.integers(1, 24),
    st.sampled_from(["darts", "single_level", "sigmoid"]),
    st.sampled_from([0.0, 0.25, 0.33, 0.9, 1.0]),
)
def test_alphas_take_the_rate_that_is_logged(options, steps, name, share):
    slope = jnp.array([1.0, 0.0])
    strategy = make(name, {"warmup": share, "spread": 0.0})
    problem = Problem(
        lambda weights, mixture, batch, key: (jnp.sum(mixture * slope) + jnp.sum(weights), {}),
        (1, 1, 2),
        (1, 1, 2),
        optimizer.build(options, steps),
        optimizer.build(options, steps),
        steps,
    )
    search = strategy(problem)
    step = jax.jit(search.step)
    state = search.init(jax.random.key(0), jnp.ones(1))
    rate = strategy.alphas_rate(optimizer.schedule(options, steps), steps)
    rates = []
    for number in range(steps):
        slopes = jax.jacobian(lambda a, s=state: search.mixture(s._replace(alphas=a))[0, 0, 0])(
            state.alphas
        )
        moved, _ = step(state, jnp.zeros(1), jnp.zeros(1))
        change = float((state.alphas - moved.alphas)[0, 0, 0])
        taken = float(rate(number))
        if name != "sigmoid":  # whose own penalty adds to the gradient
            assert change == pytest.approx(taken * float(slopes[0, 0, 0]), rel=1e-3, abs=1e-6)
        assert (change == 0) == (taken == 0)
        rates.append(taken)
        state = moved
    resting = strategy.warmup_steps(steps)
    assert rates[:resting] == [0.0] * resting
    if resting < steps:
        # The schedule begins where the alphas do, not in its middle.
        assert rates[resting] == pytest.approx(float(optimizer.schedule(options, steps)(0)))
    assert all(map(math.isfinite, rates))


# Metrics.

METRICS_OF_MEANS = [name for name, metric in METRICS.items() if not metric.of_all]
"""Those of all answers together are scored in `test_scoring.py`."""


def summary(metric, labels, errors):
    labels, errors = np.array(labels, float), np.array(errors, float)
    weight = (labels >= 0).astype(float)
    statistic = weight
    if metric.regression:
        statistic, weight = labels, np.ones(len(labels))
    return metric.summary(
        Losses(errors * weight, statistic, weight), Spelled(weight, errors * weight)
    )


@quick
@given(
    st.sampled_from(METRICS_OF_MEANS),
    st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.3, 2.0]), min_size=1, max_size=5),
    st.floats(0, 10),
)
def test_a_score_is_finite_or_undefined_and_the_undefined_is_never_the_best(name, labels, error):
    metric = METRICS[name]
    scores = summary(metric, labels, [error] * len(labels))
    score = scores[name]
    distinct = set(labels) if metric.regression else {1, 2}
    labelled = metric.regression or max(labels) >= 0
    assert defined(score) == (labelled and len(distinct) > 1)
    text = metric.text(score)
    assert (text == UNDEFINED) == math.isnan(score)
    # With no score the loss decides, and with no loss nothing does.
    assert metric.objective({name: math.nan, "loss": 1.0}) == -1
    assert metric.objective({name: math.nan, "loss": math.nan}) == -math.inf
    assert metric.objective({name: 0.5, "loss": math.nan}) == -math.inf
    assert metric.gap(math.nan) == UNDEFINED


@pytest.mark.parametrize("equal", [[0.1] * 3, [0.3], [1e8 / 3] * 7])
def test_equal_targets_leave_no_variance_for_rounding_to_explain(equal):
    scores = summary(METRICS["r2"], equal, [0.5] * len(equal))
    assert math.isnan(scores["r2"])
    assert scores["loss"] == pytest.approx(0.5)


def language(tmp_path, kind, text, **options):
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    return Language(path=str(file), tokens=kind, length=16, **options)


@pytest.mark.parametrize("alphabet", ["ab", "äß", "一丁", "😀😁", "a一é😀"])
@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_bits_are_per_character_whatever_the_tokens(tmp_path, kind, alphabet):
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list(alphabet), 4000))
    task = language(tmp_path, kind, text)
    parts = task.load()
    entropy = math.log2(len(alphabet))
    bits = task.baselines(parts["train"], parts["test"])
    # A bigram of bytes knows at least as little as one of characters, so it bounds from above.
    assert bits["unigram"] > entropy - 0.1
    metric, part = of_task(task), parts["test"]
    batch = part.take(np.arange(len(part)))
    # A model that knows nothing but the number of ids.
    outputs = jnp.zeros((*batch["label"].shape, task.vocabulary))
    losses = metric.losses(outputs, batch["label"])
    spelled = metric.spelled(losses, batch["label"])
    sums = [np.asarray(part, float).sum(-1) for part in (*losses, *spelled)]
    scored = task.facts()["test"]["characters"] - 1
    nats = math.log(task.vocabulary) * (batch["label"] >= 0).sum()
    expected = nats / math.log(2) / scored
    assert metric.summary(Losses(*sums[:3]), Spelled(*sums[3:]))[
        "bits_per_character"
    ] == pytest.approx(expected, rel=0.01)


@quick
@given(st.integers(3, 40))
def test_knowing_fewer_characters_never_scores_better(tmp_path_factory, size):
    text = "".join(chr(0x4E00 + int(i)) for i in np.random.default_rng(1).zipf(1.3, 6000) % 60)
    folder = tmp_path_factory.mktemp("text")
    scores = []
    for vocabulary in (size, 64):
        task = language(folder, "characters", text, vocabulary_size=vocabulary)
        parts = task.load()
        scores.append(task.baselines(parts["train"], parts["test"])["unigram"])
    assert scores[0] >= scores[1] - 1e-9


def test_log_and_trackers_get_no_number_that_is_none(tmp_path):
    sent = []

    class Tracker:
        def scalars(self, step, numbers):
            sent.append(dict(numbers))

        def close(self):
            pass

    with MetricsLog(tmp_path, 0, [Tracker()]) as log:
        log.write(1, {"valid_r2": math.nan, "loss": 1.0, "rate": math.inf})
    assert sent == [{"loss": 1.0}]


# Rules.


def documents(rng, rows, labels, inputs=1, vocabulary=6, length=4):
    shape = (rows, length)
    lengths = rng.integers(1, length + 1, rows)
    if inputs == 2:
        shape = (rows, 2, length)
        lengths = rng.integers(1, length + 1, (rows, 2))
    return ArraySplit(rng.integers(1, vocabulary, shape).astype(np.int32), lengths, labels)


@quick
@given(st.integers(0, 1000), st.sampled_from([1, 2, 3, 40]), st.sampled_from([1, 2]))
def test_rules_do_not_depend_on_the_order_of_rows(seed, rows, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    order = rng.permutation(rows)
    features = simple.occurs(6)
    single = documents(rng, rows, labels)
    pairs = documents(rng, rows, labels, inputs=2, vocabulary=3)
    numbers = documents(rng, rows, rng.normal(size=rows).astype(np.float32))
    tokens = documents(rng, rows, rng.integers(-1, 2, (rows, 4)))
    rules = {
        "naive_bayes": lambda a, b: simple.naive_bayes(a, b, 2, features),
        "majority": majority,
    }
    for rule in rules.values():
        assert rule(single, single) == rule(Subset(single, order), Subset(single, order))
    score = simple.overlap(pairs, pairs, features)
    assert score == simple.overlap(Subset(pairs, order), Subset(pairs, order), features)
    explained = simple.mean_of_train(numbers, numbers)
    assert defined(explained) == (rows > 1)
    moved = simple.mean_of_train(Subset(numbers, order), Subset(numbers, order))
    assert explained == moved or rows == 1
    own = simple.own_token(tokens, tokens, 6, 2)
    again = simple.own_token(Subset(tokens, order), Subset(tokens, order), 6, 2)
    assert own == again or (math.isnan(own) and math.isnan(again))
    for name, bits in simple.bigram(tokens, tokens, 6).items():
        shuffled = simple.bigram(Subset(tokens, order), Subset(tokens, order), 6)[name]
        assert bits == shuffled or (math.isnan(bits) and math.isnan(shuffled))


@quick
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1))
def test_a_threshold_is_never_within_a_tie(rows):
    values = np.array([value for value, _ in rows])
    labels = np.array([int(label) for _, label in rows])
    threshold = simple.best_threshold(values, labels)
    right = ((values >= threshold) == labels).mean()
    possible = [((values >= t) == labels).mean() for t in [*values, np.inf]]
    assert right == max(possible)


def test_a_bigram_is_the_table_of_all_pairs():
    rng = np.random.default_rng(0)
    train, test = Windows(rng.integers(1, 20, 500), 8), Windows(rng.integers(1, 20, 90), 8)
    single, pairs = np.full(20, 1e-2), np.zeros((20, 20))
    np.add.at(single, train.ids[1:], 1)
    np.add.at(pairs, (train.ids[:-1], train.ids[1:]), 1)
    unigram = single / single.sum()
    conditional = (pairs + unigram) / (pairs.sum(1, keepdims=True) + 1)
    bits = simple.bigram(train, test, 20)
    assert bits["unigram"] == pytest.approx(-np.log2(unigram[test.ids[1:]]).mean())
    assert bits["bigram"] == pytest.approx(
        -np.log2(conditional[test.ids[:-1], test.ids[1:]]).mean()
    )


def test_a_bigram_of_a_large_vocabulary_is_small():
    ids = np.random.default_rng(0).integers(1, 50_000, 20_000)
    bits = simple.bigram(Windows(ids, 64), Windows(ids[:500], 64), 50_000)
    assert all(map(defined, bits.values()))


# Statistics.


SCORES = st.lists(ODD.filter(math.isfinite), max_size=5)


@quick
@given(SCORES, SCORES, st.booleans(), st.sampled_from([0, 1, 100]))
def test_a_comparison_decides_only_on_evidence(ours, theirs, higher, examples):
    result = statistics.compare(ours, theirs, higher=higher, examples=examples)
    if result.noise is None or math.isnan(result.noise):
        assert result.outcome == "undecided"
    for values in (ours, theirs):
        assert defined(statistics.mean(values)) == bool(values)
    if min(len(ours), len(theirs)) < 2 and not examples:
        assert result.outcome == "undecided"


@pytest.mark.filterwarnings("error")
def test_statistics_of_too_few_numbers_are_undefined():
    assert math.isnan(statistics.spread([1.0]))
    assert math.isnan(statistics.mean([]))
    assert math.isnan(statistics.welch([1.0], [2.0, 3.0]))
    assert math.isnan(statistics.binomial(0.5, 0.5, 0))
    assert math.isnan(statistics.kendall_tau([1.0], [1.0]))
    assert statistics.critical_tau(0) is None
    assert defined(statistics.critical_tau(400))
    assert defined(statistics.welch([1e300, -1e300], [0.0, 0.0]))
    assert defined(statistics.spread([1e300, 1e-300, -1e300]))
    gap, noise = statistics.paired(np.array([1.0]), np.array([0.0]))
    assert gap == 1
    assert math.isnan(noise)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([[1.0]], [[0.0]]), ([[1.0, math.nan]], [[0.0, 0.0]])]
)
def test_one_example_or_an_undefined_one_is_not_significant(ours, theirs):
    result = statistics.paired_bootstrap(np.array(ours), np.array(theirs), samples=20)
    assert not result.significant
    assert result.p == 1


# Findings.


def test_undefined_scores_are_not_judged():
    space = SearchSpace(parse_candidates(("full", "uniform")), 1, 1, "model")
    nan = math.nan
    for finding in (
        diagnostics.discretisation([nan], [nan]),
        diagnostics.ranking({"full": nan, "uniform": nan}, {"full": [nan], "uniform": [nan]}),
        diagnostics.ranking({"full": 1.0, "uniform": 0.0}, {"full": [-math.inf], "uniform": [1.0]}),
        diagnostics.curvature([nan, nan, nan]),
        diagnostics.curvature([1.0, nan]),
    ):
        assert finding.value is None
        assert finding.fine is None
    loud = diagnostics.loudness(np.array([[1.0, nan]]), space, branch_norm=True)
    assert loud.fine is False
    assert loud.value is None


@quick
@given(
    st.permutations(["undefined", "infinite", "good"]),
    st.sampled_from(["loss", "accuracy"]),
    st.integers(1, 4),
)
@pytest.mark.filterwarnings("error")
def test_a_derivation_never_chooses_an_undefined_score(names, metric, examples):
    sign = 1.0
    if metric == "loss":
        sign = -1.0
    values = {"undefined": math.nan, "infinite": -sign * math.inf, "good": 0.5}
    merits = {}
    for name in names:
        merits[name] = merit({metric: np.full(examples, values[name])}, metric)
    assert largest(merits) == "good"
    assert ranked(merits)[0] == "good"
    assert tied_with("good", merits) == []


# Seeds and types.


@quick
@given(st.sampled_from([-1, -(2**31), 2**32, 2**32 + 7, 2**63, 2**64 + 1]))
def test_seeds_beyond_the_range_are_refused(seed):
    with pytest.raises(InputError, match=r"4294967295|2\^32|at least 0"):
        Planted(seed=seed)
    config = configs.defaults("listops")
    config.seed = seed
    with pytest.raises(InputError, match="seed"):
        configs.build(config)


@quick
@given(st.sets(st.sampled_from([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]), min_size=2))
def test_seeds_within_the_range_draw_differently(seeds):
    drawn = {float(jax.random.normal(jax.random.key(seed))) for seed in seeds}
    assert len(drawn) == len(seeds)


def test_float64_is_never_silently_float32():
    config = configs.defaults("listops")
    config.model.dtype = "float64"
    with pytest.raises(InputError, match="JAX_ENABLE_X64=1"):
        configs.build(config)
    with jax.enable_x64(True):
        configs.build(config)
