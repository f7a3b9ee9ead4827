"""Diagnostics: whether to believe a search, as numbers with thresholds and verdicts in words."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from dartformer.attention import to_text
from dartformer.results import Diagnostics, Finding, SearchSeeds, SeedScores
from dartformer.space.search_space import SearchSpace
from dartformer.statistics import Comparison, critical_tau, kendall_tau, mean, spread
from dartformer.statistics import compare as compare_scores
from dartformer.training.metric import ACCURACY, Metric

LOW_ENTROPY, HIGH_ENTROPY = 0.5, 0.95
"""Shares of ln K: below the first a row of the mixture has decided, above the second it has hardly
moved."""

DECIDED = 0.75
"""Largest weight of a row from which on a choice is decided. Set on 80 searches of planted tasks:
argmax was right in 56 of the 56 with it in every row, and in 10 of the others. Then 120 from other
seeds: 97 of 97, and 15 of 23 (experiments/benchmarks/README.md)."""

MANY = 8
"""Candidates from which on an undecided mixture is better replaced by sampling
(experiments/dartformer/README.md)."""

WIDE_GAP = 0.05
"""A loss of accuracy by discretization above this (5 points) means that the mixture, not its
winner, was trained."""

SILENT = 1e-3
"""RMS of a branch below which it is dead: there the 1e-6 under the root of the branch norm begins
to count."""

LOUD = 10.0
"""Times the median RMS of its layer above which a branch drowns the others, where nothing
normalizes it."""

UNTAUGHT = 1e-2
"""Of the median gradient of its layer's queries and keys, below which a branch's hardly learn."""

SHARPER, WINDOW = 1.3, 5
"""The rule of RobustDARTS (Zela et al. 2020, arXiv 1909.09656, as in its code): the dominant
eigenvalue, averaged over five evaluations, has grown by more than this since four evaluations
ago."""

UNREAD = 0.1
"""Share of unknown tokens in valid or test above which a score says little about the texts."""

SELDOM, TIMES_TRAIN = 0.03, 4.0
"""A share above the first is also too much where train has less than a quarter of it: what is
learned from train then does not fit the other texts."""

NAMED = 3
"""Layers or heads that a verdict names; it counts the remaining ones."""

TINY = 1e-30
"""Keeps a logarithm or a quotient finite."""


class Rows(NamedTuple):
    """Of each free row of a mixture, `[1 or L, 1 or H]`.

    Attributes:
      winner: the candidate with the largest weight.
      entropy: as a share of the maximum, ln K.
      margin: between the two largest weights.
    """

    winner: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray


class Observed(Protocol):
    """What was measured of a search's branches, `[L, K]`, and of its curvature."""

    @property
    def rms(self) -> np.ndarray: ...
    @property
    def gradient(self) -> np.ndarray: ...
    @property
    def curvature(self) -> float | None: ...


def rows(mixture: np.ndarray, space: SearchSpace, simplex: bool = True) -> Rows:
    """Winner, entropy and margin of each free row of the mixture.

    Where rows are no distributions (`simplex` False) but gates, each between 0 and 1, the entropy
    is the mean of the gates', as a share of ln 2.
    """
    free = _free(np.asarray(mixture, np.float64), space)
    candidates = free.shape[-1]
    entropy = _entropy(free)
    if simplex:
        entropy = entropy / np.log(candidates)
    else:
        # A gate g is a choice between g and 1 - g.
        entropy = (entropy + _entropy(1 - free)) / (candidates * np.log(2))
    order = np.sort(free, -1)  # ascending
    margin = order[..., -1] - order[..., -2]
    return Rows(free.argmax(-1), entropy, margin)


def _free(mixture: np.ndarray, space: SearchSpace) -> np.ndarray:
    """`[..., L, H, K]` -> `[..., R, C, K]`: the rows that are not copies."""
    # Tied rows of a mixture are equal, so the first of each stands for all. Counting the copies
    # would make a choice of the whole model look like a unanimous vote of its layers.
    last = np.moveaxis(mixture, (-3, -2), (0, 1))  # [L, H, ..., K]
    return np.moveaxis(space.free(last), (0, 1), (-3, -2))


def _entropy(weights: np.ndarray) -> np.ndarray:
    # 0 log 0 is 0, which a floor inside of the logarithm alone gives.
    return -(weights * np.log(np.maximum(weights, TINY))).sum(-1)


# Findings about the mixture.


def entropy(mixtures: np.ndarray, space: SearchSpace, simplex: bool = True) -> Finding:
    """Whether the architecture weights moved: mean entropy of the rows of `mixtures` [S, L, H, K]."""
    shares = []
    for mixture in mixtures:
        shares.append(float(rows(mixture, space, simplex).entropy.mean()))
    value = mean(shares)
    share = f"entropy {value:.2f} of the maximum"
    if value > HIGH_ENTROPY:
        verdict = f"the architecture weights hardly moved ({share}): the choice is close to random"
    elif value < LOW_ENTROPY:
        verdict = f"the architecture weights have decided ({share})"
    else:
        verdict = f"the architecture weights moved, and several candidates remain ({share})"
    source = "this package: with four candidates, a largest weight of 0.42"
    return Finding("entropy", value, HIGH_ENTROPY, source, value <= HIGH_ENTROPY, verdict)


def decision(mixtures: np.ndarray, space: SearchSpace) -> Finding:
    """Whether every row of the mean of `mixtures` [S, L, H, K] has one candidate far ahead."""
    free = _free(np.mean(np.asarray(mixtures, np.float64), 0), space)  # [1 or L, 1 or H, K]
    largest = free.max(-1)
    value, undecided = float(largest.min()), int((largest < DECIDED).sum())
    source = (
        "this package: of 200 searches of planted tasks, argmax was right in 153 of 153 above it, "
        "25 of 47 below"
    )
    if not undecided:
        verdict = f"every choice is decided: the smallest top weight is {value:.2f}"
        return Finding("decision", value, DECIDED, source, True, verdict)
    row, column = divmod(int(largest.argmin()), largest.shape[1])
    place = space.place_name((row, column))
    verb = "are"
    if undecided == 1:
        verb = "is"
    verdict = (
        f"{undecided} of {largest.size} choices {verb} undecided: the top weight of {place} is "
        f"{value:.2f} (threshold {DECIDED}). A longer search may choose differently"
    )
    if len(space.candidates) >= MANY:
        verdict += f". With {len(space.candidates)} candidates, prefer the strategy 'spos'"
    return Finding("decision", value, DECIDED, source, False, verdict)


def margin(mixtures: np.ndarray, space: SearchSpace, tie_margin: float) -> Finding:
    """Whether the two best candidates of every row of `mixtures` [S, L, H, K] differ.

    The two best are those of the mean over the seeds. With several seeds their difference is
    compared with its spread, the standard deviation over the seeds: a smaller one could have the
    other sign with another seed.
    """
    free = _free(np.asarray(mixtures, np.float64), space)  # [S, 1 or L, 1 or H, K]
    seeds, layers, heads, _ = free.shape
    smallest, limit = np.inf, tie_margin
    ties = []
    for place in np.ndindex(layers, heads):
        weights = free[:, *place]  # [S, K]
        # Stable, so that equal weights rank as in the search space, as argmax takes the first.
        first, second = np.argsort(-weights.mean(0), kind="stable")[:2]
        gaps = weights[:, first] - weights[:, second]
        gap, noise = float(gaps.mean()), 0.0
        if seeds > 1:
            noise = spread(gaps.tolist())
        # The finding shows one number and one threshold: those of the closest choice.
        if gap < smallest:
            smallest, limit = gap, max(noise, tie_margin)
        if gap > max(noise, tie_margin):
            continue
        bound = f"the tie margin {tie_margin:g}"
        if noise > tie_margin:
            bound = f"seed noise {noise:.2f}"
        pair = f"{to_text(space.candidates[first])} and {to_text(space.candidates[second])}"
        name = space.place_name(place)
        ties.append(f"{name}: {pair} are tied (their margin {gap:.2f} is within {bound})")
    source = "derive.tie_margin"
    if seeds > 1:
        source = f"spread over {seeds} seeds, at least derive.tie_margin"
    verdict = f"every choice is clear (smallest margin {smallest:.2f})"
    if ties:
        verdict = _first(ties)
    return Finding("margin", smallest, limit, source, not ties, verdict)


def agreement(mixtures: np.ndarray, space: SearchSpace) -> Finding:
    """Whether seeds choose alike: the share of the most frequent winner, in the worst row."""
    winners = _winners(mixtures, space)
    seeds, source = len(winners), "this package: a choice needs more than half of the seeds"
    # None and not a warning: one seed is a choice of the user, and may well be stable.
    if seeds < 2:
        verdict = (
            "only one search seed was run. Set search.seeds=3 to see whether the choice is stable"
        )
        return Finding("seeds", None, 0.5, source, None, verdict)
    shares = []
    for place in np.ndindex(winners.shape[1:]):
        counts = Counter(winners[:, *place].tolist())
        shares.append(counts.most_common(1)[0][1] / seeds)
    split = int(np.count_nonzero(np.array(shares) <= 0.5))
    if split:
        verdict = (
            f"in {split} of {len(shares)} choices no candidate wins in more than half of the "
            f"{seeds} seeds"
        )
    else:
        verdict = f"{100 * mean(shares):.0f}% of the choices of {seeds} seeds are the common one"
    return Finding("seeds", min(shares), 0.5, source, not split, verdict)


def _winners(mixtures: np.ndarray, space: SearchSpace) -> np.ndarray:
    """The candidates with the largest weights, `[S, 1 or L, 1 or H]`."""
    winners = []
    for mixture in mixtures:
        winners.append(rows(mixture, space).winner)
    return np.array(winners)


def discretisation(soft: Sequence[float], hard: Sequence[float]) -> Finding:
    """Whether the supernet keeps its accuracy when each row becomes its largest weight.

    Args:
      soft: valid accuracy of each seed's supernet at its mixture.
      hard: at the one-hot mixture of the largest weights.
    """
    value = mean(soft) - mean(hard)
    source = (
        "this package; the gap is that of arXiv 1909.09656 and 2108.04392, which give no threshold"
    )
    if not np.isfinite(value):
        verdict = "the cost of discretization is unknown, because the score is undefined on valid"
        return Finding("discretisation", None, WIDE_GAP, source, None, verdict)
    points = f"{100 * abs(value):.1f} points on valid"
    if value > WIDE_GAP:
        verdict = f"discretization costs {points}: what was trained is the mixture, not its winner"
    elif value > 0:
        verdict = f"discretization costs little ({points})"
    else:
        verdict = f"discretization costs nothing (it gains {points})"
    return Finding("discretisation", value, WIDE_GAP, source, value <= WIDE_GAP, verdict)


# Findings about the branches.


def loudness(rms: np.ndarray, space: SearchSpace, branch_norm: bool, start: str = "") -> Finding:
    """Dead or shouting branches, by the RMS `[L, K]` of their outputs before any norm.

    `start` is the checkpoint that the search began with, whose model cannot have the norm.
    """
    outputs = np.asarray(rms, np.float64)
    source = f"this package; dead is below {SILENT:g}, where the branch norm's epsilon counts"
    if not np.isfinite(outputs).all():
        place = tuple(np.argwhere(~np.isfinite(outputs))[0].tolist())
        verdict = f"the output of {_branch(space, place)} is not finite"
        return Finding("output RMS", None, LOUD, source, False, verdict)
    # The median and not the mean, which one loud branch would raise.
    ratio = outputs / np.maximum(np.median(outputs, 1, keepdims=True), TINY)  # [L, K]
    dead, loud = [], []
    for place in np.ndindex(outputs.shape):
        name = _branch(space, place)
        # Both can hold: a layer whose branches are all dead has a tiny median.
        if outputs[place] < SILENT:
            dead.append(f"{name} is dead (RMS {outputs[place]:.1g})")
        if ratio[place] > LOUD:
            loud.append(f"{name} has {ratio[place]:.0f} times the median RMS of its layer")
    value = float(ratio.max())
    # The branch norm evens out loud branches. A dead one stays dead: its direction is noise.
    warnings = list(dead)
    if not branch_norm:
        warnings += loud
    if warnings:
        verdict = _first(warnings)
        if not dead:
            verdict += ". The mixture then measures scale: "
            if start:
                verdict += "leave it out of space.candidates"
            else:
                verdict += "set model.branch_norm=True"
    else:
        verdict = f"no branch is dead; the loudest has {value:.1f} times the median RMS"
        if loud:
            verdict += ", which model.branch_norm evens out"
    return Finding("output RMS", value, LOUD, source, not warnings, verdict)


def learning(gradient: np.ndarray, space: SearchSpace) -> Finding:
    """Branches whose queries and keys hardly learn, by the norms `[L, K]` of their gradients.

    The gradients are for a unit of weight. Branches that read neither, or have no weight in the
    mixture, are left out.
    """
    smallest, warnings = np.inf, []
    for layer, norms in enumerate(np.asarray(gradient, np.float64)):
        alive = []
        for k, candidate in enumerate(space.candidates):
            # A branch without weight has gradient 0/0 for a unit of weight, which is NaN.
            if candidate.traits.reads & {"q", "k"} and np.isfinite(norms[k]):
                alive.append(k)
        if len(alive) < 2:
            continue  # alone a branch is its own median
        median = max(float(np.median(norms[alive])), TINY)
        for k in alive:
            ratio = float(norms[k] / median)
            smallest = min(smallest, ratio)
            if ratio < UNTAUGHT:
                name = _branch(space, (layer, k))
                share = f"{ratio:.1g} of the median gradient"
                warnings.append(f"the queries and keys of {name} hardly learn ({share})")
    name, source = "query and key gradients", "this package: a hundredth of the median of the layer"
    if smallest == np.inf:
        verdict = "fewer than two candidates read queries and keys: nothing to compare"
        return Finding(name, None, UNTAUGHT, source, None, verdict)
    verdict = (
        f"every branch learns (the smallest gradient is {smallest:.2g} of the median of its layer)"
    )
    if warnings:
        verdict = _first(warnings)
    return Finding(name, smallest, UNTAUGHT, source, not warnings, verdict)


def curvature(values: Sequence[float]) -> Finding:
    """Whether the dominant eigenvalue of d2 L/d alpha2 keeps growing over the evaluations."""
    source = "RobustDARTS, arXiv 1909.09656: growth of its moving average over four evaluations"
    values = [value for value in values if np.isfinite(value)]
    # The moving average of the paper: single eigenvalues, each of one batch, are too noisy.
    smooth = []
    for i in range(len(values)):
        window = values[max(0, i + 1 - WINDOW) : i + 1]
        smooth.append(mean(window))
    if len(values) < 2:
        verdict = "the growth of the curvature is unknown: there are fewer than two evaluations"
        return Finding("curvature", None, SHARPER, source, None, verdict)
    now = smooth[-1]
    earlier = smooth[max(0, len(smooth) - WINDOW)]
    # A quotient of averages says nothing where the earlier one is not positive.
    if earlier <= 0:
        verdict = "the growth of the curvature is unknown: it was not positive before"
        return Finding("curvature", None, SHARPER, source, None, verdict)
    growth = now / earlier
    change = f"dominant eigenvalue of d2L/dalpha2 from {earlier:.3g} to {now:.3g}"
    verdict = f"the minimum does not get sharper ({change})"
    if growth > SHARPER:
        verdict = (
            f"the minimum gets sharper ({change}): earlier architecture weights may discretize "
            f"better"
        )
    return Finding("curvature", growth, SHARPER, source, growth <= SHARPER, verdict)


def ranking(
    supernet: Mapping[str, float], alone: Mapping[str, Sequence[float]], step: int | None = None
) -> Finding:
    """Whether the supernet ranks candidates as training them does.

    So few candidates that only a perfect ranking is significant leave it unjudged.

    Args:
      supernet: accuracy of each candidate everywhere, with the supernet's weights.
      alone: accuracies of each trained alone, one for each seed.
      step: after which they were scored, where their trainings stopped early.
    """
    names, trained, ranks = [], [], []
    for name, scores in alone.items():
        names.append(name)
        trained.append(mean(scores))
        ranks.append(supernet[name])
    source = "one-sided exact test at 5% (Kendall 1938)"
    limit = critical_tau(len(names))
    if not np.isfinite([*ranks, *trained]).all():
        verdict = "the ranking cannot be judged, because a score is undefined"
        return Finding("ranking", None, limit, source, None, verdict)
    tau = kendall_tau(ranks, trained)
    # Of equals the first of the search space.
    top = max(names, key=supernet.__getitem__)
    lost = 100 * (max(trained) - trained[names.index(top)])
    regret = f"Its top choice, {top}, is {lost:.1f} points below the best"
    if step is not None:
        regret += f" (trained for {step} steps)"
    if not np.isfinite(tau):
        verdict = f"the ranking cannot be judged, because all scores are equal. {regret}"
        return Finding("ranking", None, limit, source, None, verdict)
    if limit is None:
        verdict = f"{len(names)} candidates are too few to judge the ranking. {regret}"
        return Finding("ranking", tau, limit, source, None, verdict)
    if tau >= limit:
        verdict = (
            f"the supernet ranks candidates as training each one alone does (Kendall's tau "
            f"{tau:.2f}). {regret}"
        )
        return Finding("ranking", tau, limit, source, True, verdict)
    # With very few candidates only a perfect ranking (tau 1) is significant. Any other says nothing
    # in either direction: of four candidates a tau of 0 or less is as likely as not by chance.
    needed = f"with {len(names)} candidates {limit:.2f} or more would be significant"
    fine: bool | None = False
    if limit >= 1:
        needed = f"with {len(names)} candidates only {limit:.2f} would be significant"
        fine = None
    verdict = (
        f"the supernet's ranking does not agree significantly with training each candidate alone "
        f"(Kendall's tau {tau:.2f}; {needed}). {regret}"
    )
    return Finding("ranking", tau, limit, source, fine, verdict)


def unknown_tokens(shares: Mapping[str, float], of_words: bool = False) -> Finding:
    """Whether the model can read valid and test, by the share of unknown tokens of each split.

    `of_words`: the tokens must be words, because each has a label.
    """
    train = shares.get("train", 0.0)
    value, unread = 0.0, []
    for part in ("valid", "test"):
        share = shares.get(part, 0.0)
        value = max(value, share)
        if share > UNREAD or (share > SELDOM and share > TIMES_TRAIN * train):
            unread.append(f"{100 * share:.0f}% of the tokens of {part} are unknown")
    verdict = f"the model knows the tokens of valid and test (at most {100 * value:.0f}% unknown)"
    if unread:
        remedy = "task.tokens='bpe' or 'bytes', or a larger task.vocabulary_size"
        if of_words:
            remedy = "a larger task.vocabulary_size, or more rows, for rare words"
        verdict = (
            f"{_first(unread)} ({100 * train:.0f}% of train): the model reads nothing there. Use "
            f"{remedy}"
        )
    source = "this package: a tenth of the tokens, or 3% and four times the share of train"
    return Finding("unknown tokens", value, UNREAD, source, not unread, verdict)


def _branch(space: SearchSpace, place: tuple[int, ...]) -> str:
    layer, k = place
    return f"{to_text(space.candidates[k])} in layer {layer}"


def _first(sentences: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    text = "; ".join(sentences[:NAMED])
    if len(sentences) > NAMED:
        text += f"; and {len(sentences) - NAMED} more"
    return text


# All findings together.


def of_mixtures(
    mixtures: np.ndarray,
    space: SearchSpace,
    tie_margin: float,
    *,
    learned: bool = True,
    simplex: bool = True,
) -> list[Finding]:
    """What mixtures `[S, L, H, K]` alone say; the arguments are those of `of_search`."""
    if not learned:
        verdict = "the strategy learns no architecture weights, and the derivation decides"
        return [Finding("margin", None, None, "", None, verdict)]
    findings = [entropy(mixtures, space, simplex)]
    if simplex:
        findings.append(decision(mixtures, space))
    findings.append(margin(mixtures, space, tie_margin))
    return findings


def of_search(
    mixtures: np.ndarray,
    space: SearchSpace,
    evaluate: Callable[[int, np.ndarray], Mapping[str, float]],
    tie_margin: float,
    *,
    learned: bool = True,
    simplex: bool = True,
    findings: Sequence[Finding] = (),
    observed: Observed | None = None,
    share: str = "accuracy",
) -> Diagnostics:
    """All that can be said of a finished search without training anything.

    Args:
      mixtures: `[S, L, H, K]`, where each seed ended.
      space: the search space.
      evaluate: (number of the seed, mixture `[L, H, K]`) -> valid loss and accuracy of its
        supernet.
      tie_margin: candidates closer than this in the mixture count as tied.
      learned: the strategy has alphas; without them a mixture is uniform and says nothing.
      simplex: rows of a mixture are distributions, not gates.
      findings: about what was observed on the way.
      observed: the numbers behind them.
      share: the score that is compared: "accuracy", or "r2" where numbers are predicted.
    """
    seeds = range(len(mixtures))
    row_stats = [rows(mixture, space, simplex) for mixture in mixtures]
    soft = [evaluate(i, mixtures[i].astype(np.float32)) for i in seeds]
    alone = {}
    for genotype in space.homogeneous():
        scores = [evaluate(i, space.mixture(genotype)) for i in seeds]
        alone[to_text(genotype.layers[0][0])] = _mean(scores)
    hard, agreed = None, None
    basic = of_mixtures(mixtures, space, tie_margin, learned=learned, simplex=simplex)
    if learned:
        # Of each seed the mixture that its own derivation by argmax would leave.
        hard = []
        for i in seeds:
            choice = space.genotype(row_stats[i].winner)
            hard.append(evaluate(i, space.mixture(choice)))
        agreed = agreement(mixtures, space)
        basic.append(agreed)
        basic.append(discretisation(_column(soft, share), _column(hard, share)))
    judged = [*basic, *findings]
    entropies, margins = [], []  # of each seed [1 or L, 1 or H]
    for row in row_stats:
        entropies.append(row.entropy)
        margins.append(row.margin)
    report = Diagnostics(
        tuple(judged),
        verdicts(judged),
        entropy=np.mean(entropies, 0),
        margin=np.mean(margins, 0),
        valid_soft=_mean(soft),
        alone=alone,
    )
    if hard is not None and agreed is not None:
        report = replace(
            report,
            valid_discrete=_mean(hard),
            discretisation_gap=basic[-1].value,
            seeds=_over_seeds(hard, share, agreed),
        )
    if observed is not None:
        report = replace(
            report,
            branch_rms=observed.rms,
            branch_gradient=observed.gradient,
            curvature=observed.curvature,
        )
    return report


def _over_seeds(hard: Sequence[Mapping[str, float]], share: str, agreed: Finding) -> SearchSeeds:
    per_seed = _column(hard, share)
    scores = SeedScores(mean(per_seed), spread(per_seed), tuple(per_seed))
    return SearchSeeds(share, scores, agreed.value)


def verdicts(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The sentences of the findings that warn, or one that says that none does."""
    warnings, sentences = [], []
    for finding in findings:
        sentences.append(finding.verdict)
        # None, of what cannot be judged, is no warning.
        if finding.fine is False:
            warnings.append(finding.verdict)
    if warnings:
        return tuple(warnings)
    return (f"no warning: {'; '.join(sentences)}",)


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {}
    for name in scores[0]:
        means[name] = mean(_column(scores, name))
    return means


def _column(scores: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """One score of each seed."""
    return [score[name] for score in scores]


# Two models compared.


def compare(
    name: str,
    ours: Sequence[float],
    rival: str,
    theirs: Sequence[float],
    *,
    examples: int = 0,
    metric: Metric = ACCURACY,
) -> tuple[Comparison, str]:
    """Whether the scores of two models differ by more than seeds explain, and a sentence about it.

    See `statistics.compare`. With one seed the error over `examples` test examples counts, where
    the metric is an accuracy.
    """
    # Only right and wrong answers have a binomial error.
    counted = 0
    if metric.percent:
        counted = examples
    result = compare_scores(ours, theirs, higher=metric.higher, examples=counted)
    if result.noise is None:
        scores = f"{metric.text(result.ours)} and {metric.text(result.theirs)}"
        sentence = f"{name} and {rival} score {scores}: {result.source}"
        return result, sentence
    sign = "+"
    if result.difference < 0:
        sign = "-"
    noise = metric.gap(result.noise).removesuffix(" points")
    gap = metric.gap(abs(result.difference))
    numbers = f"{sign}{gap}, noise {noise} {result.source}"
    if result.outcome == "undecided":
        return result, f"{name} and {rival} do not differ significantly ({numbers})"
    verb = "loses to"
    if result.outcome == "better":
        verb = "beats"
    return result, f"{name} {verb} {rival} ({numbers})"
