"""Whether to believe a result: numbers about a search or a comparison, each with a verdict in plain
words."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from dartformer.attention import to_text
from dartformer.space.search_space import SearchSpace
from dartformer.training.metric import ACCURACY, Metric

LOW_ENTROPY, HIGH_ENTROPY = 0.5, 0.95
"""Shares of ln K: below the first a row of the mixture has decided, above the second it has hardly
moved."""

DECIDED = 0.75
"""Largest weight of a row from which on a choice is one. Set on 80 searches of planted tasks:
argmax was right in 56 of the 56 with it in every row, and in 10 of the others. Then 120 from other
seeds: 97 of 97, and 15 of 23 (experiments/benchmarks/README.md)."""

MANY = 8
"""Candidates from which on an undecided mixture is better replaced by sampling
(experiments/dartformer/README.md)."""

WIDE_GAP = 0.05
"""A loss of accuracy by discretisation above this (5 points) means that the mixture, not its
winner, was trained."""

SILENT = 1e-3
"""RMS of a branch below which it is dead: there the 1e-6 under the root of the branch norm begins
to count."""

LOUD = 10.0
"""Times the median RMS of its layer above which a branch drowns the others, where nothing
normalises it."""

UNTAUGHT = 1e-2
"""Of the median gradient of its layer's queries and keys, below which a branch's hardly learn."""

SHARPER, WINDOW = 1.3, 5
"""The rule of RobustDARTS (Zela et al. 2020, arXiv 1909.09656, as in its code): the dominant
eigenvalue, averaged over five evaluations, has grown by more than this since four evaluations
ago."""

NAMED = 3
"""Places that a verdict names; it counts the rest."""


class Finding(NamedTuple):
    """One number, held against a threshold.

    Attributes:
      name: what was measured.
      value, threshold: the number and its limit; None where there is none.
      source: where the threshold comes from.
      fine: True, False for a warning, None where it cannot be judged.
      verdict: a sentence.
    """

    name: str
    value: float | None
    threshold: float | None
    source: str
    fine: bool | None
    verdict: str


def rows(mixture: np.ndarray, space: SearchSpace, simplex: bool = True) -> dict[str, np.ndarray]:
    """For each free row of the alphas `[1 or L, 1 or H]`: the winner, entropy / ln K, and margin to
    the second.

    Where rows are no distributions (`simplex` False) but gates, each between 0 and 1, the entropy
    is the mean of the gates', as a share of ln 2."""
    free = np.asarray(mixture, np.float64)[: space.alphas_shape[0], : space.alphas_shape[1]]
    entropy = -(free * np.log(np.maximum(free, 1e-30))).sum(-1)
    if simplex:
        entropy /= np.log(free.shape[-1])
    else:
        entropy = (entropy - ((1 - free) * np.log(np.maximum(1 - free, 1e-30))).sum(-1)) / (
            free.shape[-1] * np.log(2)
        )
    order = np.sort(free, -1)
    return {
        "winner": free.argmax(-1),
        "entropy": entropy,
        "margin": order[..., -1] - order[..., -2],
    }


def entropy(mixtures: np.ndarray, space: SearchSpace, simplex: bool = True) -> Finding:
    """Whether the alphas moved: mean entropy of the rows of `mixtures` `[S, L, H, K]` (see
    `rows`)."""
    value = float(np.mean([rows(m, space, simplex)["entropy"] for m in mixtures]))
    if value > HIGH_ENTROPY:
        verdict = f"the alphas hardly moved (entropy {value:.2f} of the maximum): the choice is close to a coin toss"
    elif value < LOW_ENTROPY:
        verdict = f"the alphas have decided (entropy {value:.2f} of the maximum)"
    else:
        verdict = f"the alphas moved, and keep several candidates alive (entropy {value:.2f} of the maximum)"
    return Finding(
        "entropy",
        value,
        HIGH_ENTROPY,
        "this package: with four candidates, a largest weight of 0.42",
        value <= HIGH_ENTROPY,
        verdict,
    )


def decision(mixtures: np.ndarray, space: SearchSpace) -> Finding:
    """Whether every row of the mean of `mixtures` `[S, L, H, K]` has one candidate that outweighs
    the others by far."""
    free = np.mean(np.asarray(mixtures, np.float64), 0)[
        : space.alphas_shape[0], : space.alphas_shape[1]
    ]
    largest = free.max(-1)
    value, open_ = float(largest.min()), int((largest < DECIDED).sum())
    if open_:
        row, column = divmod(int(largest.argmin()), largest.shape[1])
        verdict = (
            f"{open_} of {largest.size} places are not decided, least of all {space.place_name((row, column))} "
            f"(largest weight {value:.2f}): longer searches may choose differently"
        )
        if len(space.candidates) >= MANY:
            verdict += f"; with {len(space.candidates)} candidates a search by the strategy 'spos' is to be preferred"
    else:
        verdict = f"every place has a candidate of weight {value:.2f} or more"
    source = "this package: of 200 searches of planted tasks, argmax was right in 153 of 153 above it, 25 of 47 below"
    return Finding("decision", value, DECIDED, source, not open_, verdict)


def margin(mixtures: np.ndarray, space: SearchSpace, tie_margin: float) -> Finding:
    """Whether first and second can be told apart in every place of `mixtures` `[S, L, H, K]`.

    The first two are those of the mean over the seeds. With several seeds their difference is held
    against its spread, the standard deviation over the seeds: a smaller one would be another seed's
    sign."""
    free = np.asarray(mixtures, np.float64)[:, : space.alphas_shape[0], : space.alphas_shape[1]]
    seeds, tied, smallest, limit = len(free), [], np.inf, tie_margin
    for place in np.ndindex(free.shape[1:3]):
        values = free[(slice(None), *place)]
        first, second = np.argsort(-values.mean(0), kind="stable")[:2]
        gaps = values[:, first] - values[:, second]
        noise = spread(gaps.tolist()) if seeds > 1 else 0.0
        if gaps.mean() < smallest:
            smallest, limit = float(gaps.mean()), max(noise, tie_margin)
        if gaps.mean() <= max(noise, tie_margin):
            what = (
                f"seed noise {noise:.2f}"
                if noise > tie_margin
                else f"the tie margin {tie_margin:g}"
            )
            tied.append(
                f"{space.place_name(place)}: margin {gaps.mean():.2f} is within {what}: treat "
                f"{to_text(space.candidates[first])} and {to_text(space.candidates[second])} as tied"
            )
    more = (
        f"; and so in {len(tied) - NAMED} more of {free[0, ..., 0].size} places"
        if len(tied) > NAMED
        else ""
    )
    source = (
        f"spread over {seeds} seeds, at least derive.tie_margin"
        if seeds > 1
        else "derive.tie_margin"
    )
    return Finding(
        "margin",
        smallest,
        limit,
        source,
        not tied,
        "; ".join(tied[:NAMED]) + more
        if tied
        else f"every choice is clear (smallest margin {smallest:.2f})",
    )


def agreement(mixtures: np.ndarray, space: SearchSpace) -> Finding:
    """Whether seeds choose alike: the share of `mixtures` `[S, L, H, K]` with the common winner, in
    the worst place."""
    winners = np.array([rows(m, space)["winner"] for m in mixtures])
    seeds, source = (
        len(winners),
        "this package: what is chosen must be chosen by more than half of the seeds",
    )
    if seeds < 2:
        return Finding(
            "seeds",
            None,
            0.5,
            source,
            None,
            "one seed: another might choose differently (search.seeds)",
        )
    shares = np.array(
        [
            Counter(winners[(slice(None), *place)].tolist()).most_common(1)[0][1] / seeds
            for place in np.ndindex(winners.shape[1:])
        ]
    )
    split = int((shares <= 0.5).sum())
    if split:
        verdict = f"in {split} of {shares.size} places no candidate is chosen by more than half of the {seeds} seeds"
    else:
        verdict = f"{100 * shares.mean():.0f}% of the choices of {seeds} seeds are the common one"
    return Finding("seeds", float(shares.min()), 0.5, source, not split, verdict)


def discretisation(soft: Sequence[float], hard: Sequence[float]) -> Finding:
    """Valid accuracy of each seed's supernet at its mixture, and at the one-hot mixture of the
    largest weights."""
    value = float(np.mean(soft) - np.mean(hard))
    points = f"{100 * abs(value):.1f} points on valid against the mixture"
    if value > WIDE_GAP:
        verdict = (
            f"the discretised supernet loses {points}: alphas and one-hot performance may disagree"
        )
    elif value > 0:
        verdict = f"the discretised supernet keeps its accuracy (it loses {points})"
    else:
        verdict = f"the discretised supernet is no worse (it gains {points})"
    source = (
        "this package; the gap is that of arXiv 1909.09656 and 2108.04392, which give no threshold"
    )
    return Finding("discretisation", value, WIDE_GAP, source, value <= WIDE_GAP, verdict)


def loudness(rms: np.ndarray, space: SearchSpace, branch_norm: bool) -> Finding:
    """Dead or shouting branches, by the RMS `[L, K]` of their outputs before any norm."""
    each = np.asarray(rms, np.float64)
    ratio = each / np.maximum(np.median(each, 1, keepdims=True), 1e-30)
    dead = [
        f"{_branch(space, i)} is dead (RMS {each[i]:.1g})"
        for i in np.ndindex(each.shape)
        if each[i] < SILENT
    ]
    loud = [
        f"{_branch(space, i)} has {ratio[i]:.0f} times the median RMS of its layer"
        for i in np.ndindex(each.shape)
        if ratio[i] > LOUD
    ]
    said, value = dead + ([] if branch_norm else loud), float(ratio.max())
    if said:
        verdict = _some(said) + (
            "" if dead else ": the mixture measures scale (model.branch_norm evens it out)"
        )
    else:
        verdict = (
            f"no branch is dead; the loudest has {value:.1f} times the median RMS of its layer"
        )
        verdict += ", which the branch norm evens out" if loud else ""
    source = f"this package; dead is below {SILENT:g}, where the branch norm's epsilon counts"
    return Finding("output RMS", value, LOUD, source, not said, verdict)


def learning(gradient: np.ndarray, space: SearchSpace) -> Finding:
    """Branches whose queries and keys hardly learn, by the norms `[L, K]` of their gradients for a
    unit of weight.

    Branches that read neither, or have no weight in the mixture, are left out.
    """
    smallest, said = np.inf, []
    for l, row in enumerate(np.asarray(gradient, np.float64)):
        alive = [
            k
            for k, a in enumerate(space.candidates)
            if a.traits.reads & {"q", "k"} and np.isfinite(row[k])
        ]
        if len(alive) < 2:
            continue
        ratios = {k: float(row[k] / max(np.median(row[alive]), 1e-30)) for k in alive}
        smallest = min(smallest, *ratios.values())
        said += [
            f"the queries and keys of {_branch(space, (l, k))} hardly learn ({r:.1g} of the median gradient)"
            for k, r in ratios.items()
            if r < UNTAUGHT
        ]
    source = "this package: a hundredth of the median of the layer"
    if smallest == np.inf:
        return Finding(
            "query and key gradients",
            None,
            UNTAUGHT,
            source,
            None,
            "fewer than two candidates read queries and keys: nothing to compare",
        )
    return Finding(
        "query and key gradients",
        smallest,
        UNTAUGHT,
        source,
        not said,
        _some(said)
        if said
        else f"every branch learns (the smallest gradient is {smallest:.2g} of the median of its layer)",
    )


def curvature(values: Sequence[float]) -> Finding:
    """Whether the dominant eigenvalue of d2 L/d alpha2, at each evaluation of a search, keeps
    growing."""
    smooth = [float(np.mean(values[max(0, i + 1 - WINDOW) : i + 1])) for i in range(len(values))]
    source = "RobustDARTS, arXiv 1909.09656: growth of its moving average over four evaluations"
    if len(values) < 2 or smooth[max(0, len(smooth) - WINDOW)] <= 0:
        why = "fewer than two evaluations" if len(values) < 2 else "it was not positive before"
        return Finding(
            "curvature",
            None,
            SHARPER,
            source,
            None,
            f"growth of the alphas' curvature is unknown: {why}",
        )
    earlier, now = smooth[max(0, len(smooth) - WINDOW)], smooth[-1]
    numbers = f"dominant eigenvalue of d2L/dalpha2 from {earlier:.3g} to {now:.3g}"
    return Finding(
        "curvature",
        now / earlier,
        SHARPER,
        source,
        now / earlier <= SHARPER,
        f"the minimum gets sharper ({numbers}): earlier alphas may discretise better"
        if now / earlier > SHARPER
        else f"the minimum does not get sharper ({numbers})",
    )


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """tau-b of two lists of at least two numbers, with Kendall's correction for ties; NaN where one
    is all ties."""
    i, j = np.triu_indices(len(a), 1)
    x, y = (
        np.sign(np.subtract(np.take(a, i), np.take(a, j))),
        np.sign(np.subtract(np.take(b, i), np.take(b, j))),
    )
    pairs = np.sqrt(np.count_nonzero(x)) * np.sqrt(np.count_nonzero(y))
    return float((x * y).sum() / pairs) if pairs else float("nan")


def critical_tau(n: int) -> float | None:
    """The smallest tau of n untied items that at most 5% of their orders reach; None if there are
    too few orders."""
    counts = np.ones(1)  # of orders with 0, 1, 2, ... inversions
    for i in range(2, n + 1):
        counts = np.convolve(counts, np.ones(i))
    allowed = np.flatnonzero(np.cumsum(counts) / counts.sum() <= 0.05)
    return float(1 - 4 * allowed[-1] / (n * (n - 1))) if len(allowed) else None


def ranking(supernet: Mapping[str, float], alone: Mapping[str, Sequence[float]]) -> Finding:
    """Whether the supernet ranks candidates as training them does.

    Args:
      supernet: accuracy of each candidate everywhere, with the supernet's weights.
      alone: accuracies of each trained alone, one for each seed.
    """
    names = list(alone)
    means = [float(np.mean(alone[n])) for n in names]
    tau, limit = kendall_tau([supernet[n] for n in names], means), critical_tau(len(names))
    source = "one-sided exact test at 5% (Kendall 1938)"
    best = max(names, key=supernet.__getitem__)
    lost = 100 * (max(means) - means[names.index(best)])
    regret = f"its favourite, {best}, is {lost:.1f} points below the best alone"
    if not np.isfinite(tau) or limit is None:
        why = f"{len(names)} candidates are too few" if limit is None else "all are equal"
        return Finding(
            "ranking",
            tau if np.isfinite(tau) else None,
            limit,
            source,
            None,
            f"whether the supernet ranks as training alone does cannot be told: {why}; {regret}",
        )
    fine = tau >= limit
    return Finding(
        "ranking",
        tau,
        limit,
        source,
        bool(fine),
        f"the supernet ranks candidates "
        f"{'as' if fine else 'no more like'} training alone does{'' if fine else ' than chance might'} "
        f"(Kendall tau {tau:.2f}); {regret}",
    )


def _branch(space: SearchSpace, where: tuple[int, ...]) -> str:
    return f"{to_text(space.candidates[where[1]])} in layer {where[0]}"


def _some(said: list[str]) -> str:
    more = f"; and {len(said) - NAMED} more" if len(said) > NAMED else ""
    return "; ".join(said[:NAMED]) + more


def of_search(
    mixtures: np.ndarray,
    space: SearchSpace,
    evaluate: Callable[[int, np.ndarray], Mapping[str, float]],
    tie_margin: float,
    *,
    learned: bool = True,
    simplex: bool = True,
    observed: Sequence[Finding] = (),
    share: str = "accuracy",
) -> dict[str, Any]:
    """All that can be said of a finished search without training anything.

    Args:
      mixtures: `[S, L, H, K]`, where each seed ended.
      space: the search space.
      evaluate: (number of the seed, mixture `[L, H, K]`) -> valid loss and accuracy of its
        supernet.
      tie_margin: candidates closer than this in the mixture count as tied.
      share: the score that is looked at: "accuracy", or "r2" where numbers are predicted.
      learned: the strategy has alphas; without them a mixture is uniform and says nothing.
      simplex: rows of a mixture are distributions, not gates.
      observed: what else was found, on the way.

    Returns:
      Plain data: rows of entropy and margin (means over the seeds), valid at the mixture and at its
        argmax, each
      candidate alone in the supernet, `findings` and `verdicts`.
    """
    each = range(len(mixtures))
    found = [rows(m, space, simplex) for m in mixtures]
    soft = [evaluate(i, mixtures[i].astype(np.float32)) for i in each]
    alone = {
        to_text(g.layers[0][0]): _mean([evaluate(i, space.mixture(g)) for i in each])
        for g in space.homogeneous()
    }
    data: dict[str, Any] = {
        "entropy": np.mean([f["entropy"] for f in found], 0).tolist(),
        "margin": np.mean([f["margin"] for f in found], 0).tolist(),
        "valid_soft": _mean(soft),
        "alone": alone,
    }
    if not learned:
        return {
            **data,
            **judged(
                [
                    Finding(
                        "margin",
                        None,
                        None,
                        "",
                        None,
                        "the strategy learns no alphas: its mixture "
                        "is uniform, and the derivation decides",
                    ),
                    *observed,
                ]
            ),
        }
    hard = [evaluate(i, space.mixture(space.genotype(found[i]["winner"]))) for i in each]
    seeds = agreement(mixtures, space)
    findings = [
        entropy(mixtures, space, simplex),
        *([decision(mixtures, space)] if simplex else []),
        margin(mixtures, space, tie_margin),
        seeds,
        discretisation([s[share] for s in soft], [h[share] for h in hard]),
    ]
    accuracy = [h[share] for h in hard]
    return {
        **data,
        "valid_discrete": _mean(hard),
        "discretisation_gap": findings[-1].value,
        "seeds": {
            f"valid_discrete_{share}": {
                "mean": float(np.mean(accuracy)),
                "spread": spread(accuracy),
                "per_seed": accuracy,
            },
            "agreement": seeds.value,
        },
        **judged([*findings, *observed]),
    }


def judged(findings: Sequence[Finding | Mapping[str, Any]]) -> dict[str, Any]:
    """`findings` as plain data and `verdicts`, the sentences of those that warn (or that nothing
    does)."""
    plain = [f._asdict() if isinstance(f, Finding) else dict(f) for f in findings]
    warnings = [f["verdict"] for f in plain if f["fine"] is False]
    return {
        "findings": plain,
        "verdicts": warnings or ["no warning: " + "; ".join(f["verdict"] for f in plain)],
    }


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {k: float(np.mean([s[k] for s in scores])) for k in scores[0]}


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def welch(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Half-width of Welch's 95% interval for the difference of two means, each over at least two
    seeds."""
    parts = np.array([spread(ours) ** 2 / len(ours), spread(theirs) ** 2 / len(theirs)])
    if parts.sum() == 0:
        return 0.0
    degrees = parts.sum() ** 2 / (
        parts[0] ** 2 / (len(ours) - 1) + parts[1] ** 2 / (len(theirs) - 1)
    )
    return float(stdtrit(degrees, 0.975) * np.sqrt(parts.sum()))


class Bootstrap(NamedTuple):
    """The difference of two models' mean scores, its 95% interval, and how often the other sign
    comes up.

    `p` is two-sided: twice the smaller share of resamples on either side of 0 (a resample at 0
    counts on both)."""

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, samples: int = 2000, seed: int = 0
) -> Bootstrap:
    """Whether `ours` `[S, n]` differs from `theirs` `[T, n]`, scores of seeds on the same n
    examples.

    Examples are drawn again with replacement, the same for both (Koehn 2004, Statistical
    Significance Tests for Machine Translation Evaluation), and so are each side's seeds, where it
    has several."""
    rng = np.random.default_rng(seed)
    n = ours.shape[1]
    found = np.empty(samples)
    for i in range(samples):
        counts = np.bincount(rng.integers(n, size=n), minlength=n) / n
        means = [
            (one[rng.integers(len(one), size=len(one))] @ counts).mean() for one in (ours, theirs)
        ]
        found[i] = means[0] - means[1]
    low, high = np.quantile(found, (0.025, 0.975))
    p = min(1.0, 2 * min(float((found <= 0).mean()), float((found >= 0).mean())))
    return Bootstrap(
        float(ours.mean() - theirs.mean()), float(low), float(high), max(p, 1 / samples)
    )


def compare(
    name: str,
    ours: Sequence[float],
    other_name: str,
    theirs: Sequence[float],
    *,
    better: str = "beats",
    rows_counted: int | None = None,
    metric: Metric = ACCURACY,
) -> str:
    """One sentence: does `ours` differ from `theirs` by more than seeds (and finite test data)
    explain?

    The difference of means is held against Welch's 95% interval from the spread over seeds; with
    one seed, against twice the binomial error of an accuracy over `rows_counted` examples (of
    another metric there is none)."""
    a, b = float(np.mean(ours)), float(np.mean(theirs))
    if len(ours) > 1 and len(theirs) > 1:
        error = welch(ours, theirs)
        source = f"over {len(ours)} seeds"
    elif rows_counted and metric.percent:
        error = 2 * np.sqrt((a * (1 - a) + b * (1 - b)) / rows_counted)
        source = f"for one seed and {rows_counted} examples"
    else:
        return f"{name} ({metric.text(a)}) and {other_name} ({metric.text(b)}): too few seeds to compare"
    noise = metric.gap(error).removesuffix(" points")
    difference = f"{'-' if a < b else '+'}{metric.gap(abs(a - b))}, noise {noise} {source}"
    if abs(a - b) <= error:
        return f"{name} ties with {other_name} ({difference})"
    return (
        f"{name} {better} {other_name} ({difference})"
        if (a > b) == metric.higher
        else f"{name} loses to {other_name} ({difference})"
    )
