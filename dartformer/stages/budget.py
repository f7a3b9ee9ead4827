"""Resolve: the best genotype within a budget from a finished search, and the front over cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dartformer import cost
from dartformer.attention import to_text
from dartformer.cost.budget import Budget, Price, number, require_possible
from dartformer.cost.integer_program import near_ties, solve, within
from dartformer.cost.prices import device_of_latencies
from dartformer.cost.prices import prices as price_space
from dartformer.derivations.base import Trained
from dartformer.errors import InputError
from dartformer.results import BudgetAnswer, Front, FrontPoint, GenotypeRecord, Layers, Limit
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.layout import Workdir
from dartformer.stages.study import Study

POINTS = 12
"""Budgets for which the front is solved, evenly in ratio from the cheapest genotype to the most
expensive."""

SMALLEST = 1e-6
"""Weights below count as this: the logarithm of zero is no score."""

TIGHTER = 0.98
"""Where a model is measured above its limit, it is solved again for this share of the limit that
would just do."""

ATTEMPTS = 3
"""At a genotype that is also measured within its limits."""

Inherits = Callable[[Genotype], Mapping[str, float]]
"""genotype -> valid loss and accuracy (or r2) with the weights it inherits, the mean over the
search's seeds."""


@dataclass(frozen=True)
class Problem:
    """What is solved: scores of each place `[1 or L, 1 or H, K]` under a budget with its prices."""

    study: Study
    budget: Budget
    prices: Mapping[str, Price]
    scores: np.ndarray

    def limits(self, aims: Mapping[str, float]) -> list[tuple[Price, float]]:
        """Prices with the limits that are aimed at."""
        return [(self.prices[key], aims[key]) for key in self.budget.quantities]

    def affordable(self, genotype: Genotype) -> bool:
        """Whether the genotype is within every limit by its prices."""
        return not self.exceeded(genotype)

    def exceeded(self, genotype: Genotype) -> list[str]:
        """A phrase for each limit that the genotype is above."""
        phrases = []
        for key, limit in self.budget.limits:
            predicted = self.prices[key].of(genotype, self.study.space)
            if predicted > limit:
                phrases.append(f"{key} {number(predicted)}, limit {number(limit)}")
        return phrases


@dataclass(frozen=True)
class Solution:
    """A genotype with what was measured of it, and the limits it was solved for."""

    genotype: Genotype
    choice: np.ndarray
    measured: Mapping[str, float]
    aims: Mapping[str, float]


def resolve(
    study: Study,
    workdir: Workdir,
    trained: Sequence[Trained],
    budget: Budget,
    inherits: Inherits,
    prices: Mapping[str, Price] | None = None,
) -> BudgetAnswer:
    """The best genotype within a budget, and the front; writes `budget.json` and `pareto.json`.

    The answer is what the integer programme chose, or a model of the front that costs no more and
    scores more on valid with inherited weights, where there is one.

    Args:
      study: of a finished search.
      workdir: of the search.
      trained: what a derivation sees, for each seed.
      budget: limits; its first quantity is the one of the front.
      inherits: scores of a genotype.
      prices: where they are known already.

    Raises:
      InputError: the budget is below the cheapest genotype, or no supernet was trained.
    """
    _require_supernet(study)
    prices = prices or price_space(study.model, study.space, budget)
    require_possible(budget, prices, study.space)
    problem = Problem(study, budget, prices, place_scores(study, trained))
    programme = _solve(problem)
    points = front(problem, inherits, programme.genotype)
    solution = _improved(problem, points, programme)
    points = _with_chosen(points, solution.genotype)
    answer = _answer(problem, trained, programme, solution)
    curve = _curve(problem, points, len(trained))
    workdir.write(workdir.budget, answer)
    workdir.write(workdir.pareto, curve)
    return replace(answer, quantity=curve.quantity, metric=curve.metric, front=points)


def _require_supernet(study: Study) -> None:
    if not study.strategy.traits.supernet:
        raise InputError(
            f"the strategy {study.config.search.strategy.name!r} does not work with a budget, "
            f"because it trains no supernet that could score genotypes. Use another strategy."
        )


def _with_chosen(points: Sequence[FrontPoint], genotype: Genotype) -> tuple[FrontPoint, ...]:
    """The front with the answer marked, which need not be what the programme chose."""
    layers = _layers(genotype)
    marked = []
    for point in points:
        marked.append(replace(point, chosen=point.genotype == layers))
    return tuple(marked)


def _answer(
    problem: Problem, trained: Sequence[Trained], programme: Solution, solution: Solution
) -> BudgetAnswer:
    """The content of `budget.json`."""
    scored = "valid loss of each place alone, all else uniform"
    ties: list[str] = []
    if problem.study.strategy.traits.alphas:
        scored = "log of the mixture"
        # Margins of `tie_margin` are between weights of a mixture, so losses have no ties.
        ties = _ties(problem, trained, solution, programme.aims)
    return BudgetAnswer(
        device_of_latencies(problem.budget),
        problem.budget.to_dict(),
        _layers(solution.genotype),
        str(solution.genotype),
        str(programme.genotype),
        tuple(_limits(problem, solution)),
        tuple(ties),
        scored,
    )


def _curve(problem: Problem, points: tuple[FrontPoint, ...], seeds: int) -> Front:
    """The content of `pareto.json`."""
    return Front(
        device_of_latencies(problem.budget),
        problem.budget.to_dict(),
        problem.budget.quantities[0],
        problem.study.metric.share,
        "valid",
        "inherited from the supernet",
        seeds,
        points,
    )


def _solve(problem: Problem) -> Solution:
    """What the programme chooses; solved again where it is measured above its limits."""
    space, aims = problem.study.space, dict(problem.budget.limits)
    for attempt in range(ATTEMPTS):
        choice = solve(space, problem.scores, problem.limits(aims))
        genotype = space.genotype(choice)
        measured = measure(problem.study, problem.budget, genotype)
        solution = Solution(genotype, choice, measured, dict(aims))
        # Prices of latency and memory add up parts, which a compiled model only comes near to.
        tighter = _tighter(problem.budget, measured, aims)
        if not tighter or attempt + 1 == ATTEMPTS:
            break
        # Below the cheapest genotype there is nothing to solve: the last answer says that it is
        # above the limit.
        if not _possible(problem, tighter):
            break
        aims.update(tighter)
    return solution


def _possible(problem: Problem, aims: Mapping[str, float]) -> bool:
    """Whether some genotype is within each of these limits alone."""
    for key, aim in aims.items():
        least, _ = problem.prices[key].cheapest(problem.study.space)
        if least > aim:
            return False
    return True


def _tighter(
    budget: Budget, measured: Mapping[str, float], aims: Mapping[str, float]
) -> dict[str, float]:
    """For each limit that a model was measured above, a lower one to aim at."""
    tighter = {}
    for key, limit in budget.limits:
        value = measured.get(key)
        if value is not None and value > limit:
            # By how much the price was too low is taken to hold for the next genotype, too.
            excess = value / limit
            tighter[key] = aims[key] / excess * TIGHTER
    return tighter


def _improved(problem: Problem, points: Sequence[FrontPoint], programme: Solution) -> Solution:
    """The programme's solution, or a model of the front that is better and within the budget."""
    better = cheaper_and_better(points, programme.genotype)
    if better is None or not problem.affordable(better):
        return programme
    # The programme's aims can be tighter than the limits, and this genotype was solved for none.
    measured = measure(problem.study, problem.budget, better)
    for key, limit in problem.budget.limits:
        if key in measured and measured[key] > limit:
            return programme
    space = problem.study.space
    # Of places that share a choice one is kept, as the programme has it: [R, C].
    choice = space.free(space.choice(better))
    return Solution(better, choice, measured, programme.aims)


def _limits(problem: Problem, solution: Solution) -> list[Limit]:
    rows = []
    for key, limit in problem.budget.limits:
        predicted = problem.prices[key].of(solution.genotype, problem.study.space)
        measured = solution.measured.get(key)
        value = measured
        if value is None:
            value = predicted
        slack, aim = limit - value, solution.aims[key]
        rows.append(Limit(key, limit, predicted, measured, aim, slack, value <= limit))
    return rows


def _ties(
    problem: Problem,
    trained: Sequence[Trained],
    solution: Solution,
    aims: Mapping[str, float],
) -> list[str]:
    study = problem.study
    mixture = _mixtures(study.space, trained).mean(0)
    margin = study.config.derive.tie_margin
    return near_ties(study.space, mixture, solution.choice, problem.limits(aims), margin)


def place_scores(study: Study, trained: Sequence[Trained]) -> np.ndarray:
    """`[1 or L, 1 or H, K]`: the log of the mixture, the mean over seeds.

    Where no alphas were learned: minus the valid loss with one candidate alone in one place and all
    others mixed evenly.
    """
    space = study.space
    layers, heads, candidates = space.alphas_shape
    if study.strategy.traits.alphas:
        # The programme adds scores, and a sum of logs ranks genotypes by the product of their
        # weights: how likely the mixture is to draw them.
        mixtures = np.maximum(_mixtures(space, trained), SMALLEST)
        return np.log(mixtures).mean(0)
    scores = np.zeros((layers, heads, candidates))
    for layer, head, k in np.ndindex(layers, heads, candidates):
        # All else is mixed evenly, because no weights were learned that would prefer anything.
        mixture = np.full(space.mixture_shape, 1 / candidates, np.float32)
        place = space.cells((layer, head))
        mixture[place] = np.eye(candidates, dtype=np.float32)[k]
        losses = []
        for supernet in trained:
            scored = supernet.evaluate(supernet.weights, mixture, None)
            losses.append(np.mean(scored["loss"]))
        scores[layer, head, k] = -np.mean(losses)
    return scores


def _mixtures(space: SearchSpace, trained: Sequence[Trained]) -> np.ndarray:
    """`[S, 1 or L, 1 or H, K]`: each seed's mixture, with one row for what shares alphas."""
    mixtures = [space.free(supernet.mixture) for supernet in trained]
    return np.array(mixtures)


def measure(study: Study, budget: Budget, genotype: Genotype) -> dict[str, float]:
    """Of what the budget limits, what can be measured: milliseconds and XLA's intermediate bytes."""
    limited = budget.quantities
    if budget.on:
        return {}  # nothing runs on a device that is not here
    # Everything else is exact by formula, and a model takes seconds to compile.
    if "latency_ms" not in limited and "memory_bytes" not in limited:
        return {}
    length = budget.length or None
    if budget.phase == "decode":
        measured = cost.decode(study.model, genotype, batch=budget.batch, length=length)
    else:
        measured = cost.model(
            study.model, genotype, batch=budget.batch, length=length, phase=budget.phase
        )
    values = {}
    if "latency_ms" in limited:
        values["latency_ms"] = 1e3 * measured.seconds.median
    if "memory_bytes" in limited:
        values["memory_bytes"] = float(measured.temp_bytes)
    return values


def front(problem: Problem, inherits: Inherits, chosen: Genotype) -> tuple[FrontPoint, ...]:
    """The best genotypes within budgets from the cheapest to the most expensive, by cost.

    The homogeneous and the chosen ones are among them.
    """
    space, share = problem.study.space, problem.study.metric.share
    price = problem.prices[problem.budget.quantities[0]]
    named = {}
    for genotype in space.homogeneous():
        named[genotype] = to_text(genotype.layers[0][0])
    # Several budgets have the same best genotype, which is scored once.
    genotypes = dict.fromkeys([*_along(problem, price), chosen, *named])
    points = []
    for genotype in genotypes:
        score = inherits(genotype)
        point = FrontPoint(
            share,
            price.of(genotype, space),
            score[share],
            score["loss"],
            _layers(genotype),
            str(genotype),
            named.get(genotype),
            chosen=genotype == chosen,
            front=False,
        )
        points.append(point)
    # Of equal costs the best comes first, so that the others of that cost are behind the front.
    points.sort(key=lambda point: (point.cost, -point.score))
    best = -np.inf
    marked = []
    for point in points:
        marked.append(replace(point, front=point.score > best))
        best = max(best, point.score)
    return tuple(marked)


def _along(problem: Problem, price: Price) -> list[Genotype]:
    """The cheapest genotype, and the best within each of the budgets up to the most expensive."""
    space = problem.study.space
    least, cheapest = price.cheapest(space)
    most, _ = price.most_expensive(space)
    genotypes = [cheapest]
    # Costs can be 0 (keys and values of a model that keeps none), which has no ratio to others.
    for limit in np.geomspace(max(least, 1e-12), max(most, 1e-12), POINTS).tolist():
        # The ends are costs of genotypes, which rounding must not leave out.
        choice = solve(space, problem.scores, [(price, limit * (1 + 1e-9))])
        assert within(space, choice, [(price, limit * (1 + 1e-6))])
        genotypes.append(space.genotype(choice))
    return genotypes


def cheaper_and_better(points: Sequence[FrontPoint], genotype: Genotype) -> Genotype | None:
    """The best point that costs no more than `genotype` and scores more; None if there is none."""
    layers = _layers(genotype)
    current = next(point for point in points if point.genotype == layers)
    best = current
    for point in points:
        if point.cost <= current.cost and point.score > best.score:
            best = point
    if best is current:
        return None
    return _genotype(best.genotype)


def enforce(
    study: Study,
    workdir: Workdir,
    trained: Sequence[Trained],
    genotype: Genotype,
    inherits: Inherits,
) -> tuple[Genotype, BudgetAnswer]:
    """The genotype itself where it is within the search's budget, otherwise what `resolve` finds."""
    budget = study.budget
    assert budget is not None
    # The search's own prices, also where the machine is now slower or faster.
    answer = resolve(study, workdir, trained, budget, inherits, study.prices)
    # `pareto.json` holds the front, and `results.json` need not repeat it.
    answer = replace(answer, front=None)
    problem = Problem(study, budget, study.prices, np.zeros(0))
    exceeded = problem.exceeded(genotype)
    if not exceeded:
        note = "the derivation's own genotype is within the budget"
        return genotype, replace(answer, kept=True, note=note)
    note = (
        f"the derivation's own genotype is above the budget ({'; '.join(exceeded)}); this is the "
        f"best within it"
    )
    return _genotype(answer.genotype), replace(answer, kept=False, note=note)


def _layers(genotype: Genotype) -> Layers:
    layers = []
    for heads in genotype.layers:
        layers.append(tuple(map(to_text, heads)))
    return tuple(layers)


def _genotype(layers: Layers) -> Genotype:
    return Genotype.from_dict(GenotypeRecord(1, layers).to_dict())
