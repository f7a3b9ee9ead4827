"""Resolve: a finished search answered again under a budget, in seconds; and the front of accuracy
against cost."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dartformer import cost
from dartformer.attention import to_text
from dartformer.cost.budget import Budget, Price, number, require_possible
from dartformer.cost.integer_program import near_ties, solve, within
from dartformer.cost.prices import prices as price_space
from dartformer.derivations.base import Trained
from dartformer.errors import InputError
from dartformer.machine.workdir import write_json
from dartformer.space.genotype import Genotype
from dartformer.stages.study import Run

POINTS = 12
"""Budgets for which the front is solved, evenly in ratio from the cheapest genotype to the
dearest."""

SMALLEST = 1e-6
"""Weights below count as this: the logarithm of zero is no score."""

TIGHTER = 0.98
"""Where a model is measured above its limit, it is solved again for this share of the limit that
would just do."""

Inherits = Callable[[Genotype], dict[str, float]]
"""genotype -> valid loss and accuracy (or r2) with the weights it inherits, the mean over the
search's seeds."""


def resolve(
    run: Run,
    given: list[Trained],
    budget: Budget,
    inherits: Inherits,
    prices: dict[str, Price] | None = None,
) -> dict[str, Any]:
    """The best genotype within a budget, and the front; writes `budget.json` and `pareto.json`.

    Args:
      run: of a finished search.
      given: what a derivation is given, for each seed.
      budget: limits; its first quantity is the one of the front.
      inherits: scores of a genotype.
      prices: where they are known already.

    Returns:
      What `budget.json` holds: "budget", "genotype" (layers), "text", "limits" (a row for each:
        limit, predicted,
      measured or None, slack, met), "ties", "scores", "front" (the points of `pareto.json`),
      "programme": what the integer programme chose, in whose place "genotype" is a model of the
      front that costs no more and scores more on valid with inherited weights, where there is one.

    Raises:
      InputError: the budget is below the cheapest genotype, or no supernet was trained.
    """
    space = run.space
    if not run.strategy.traits.supernet:
        raise InputError(
            f"the strategy {run.config.search.strategy.name!r} trains no supernet: nothing says what a "
            f"genotype within a budget is worth."
        )
    known = prices or price_space(run.model, space, budget)
    require_possible(budget, known, space)
    rows, columns, _ = space.alphas_shape
    mixture = np.mean([one.mixture for one in given], 0)[:rows, :columns]
    scores = place_scores(run, given)
    aims = dict(budget.limits)
    for attempt in range(3):
        limits = [(known[key], aims[key]) for key, _ in budget.limits]
        choice = solve(space, scores, limits)
        genotype = space.genotype(choice)
        measured = measure(run, budget, genotype)
        over = {
            key: found / limit
            for key, limit in budget.limits
            if (found := measured.get(key)) is not None and found > limit
        }
        tighter = {key: aims[key] / share * TIGHTER for key, share in over.items()}
        if (
            not over
            or attempt == 2
            or any(known[key].cheapest(space)[0] > aim for key, aim in tighter.items())
        ):
            break
        aims.update(tighter)
    quantity = budget.limits[0][0]
    points = front(run, known[quantity], scores, inherits, genotype)
    said, better = str(genotype), cheaper_and_better(points, genotype, run.metric.share)
    if better is not None and all(
        known[key].of(better, space) <= limit for key, limit in budget.limits
    ):
        again = measure(run, budget, better)
        if all(again[key] <= limit for key, limit in budget.limits if key in again):
            genotype, measured, choice = better, again, space.choice(better)
            for row in points:
                row["chosen"] = row["genotype"] == genotype.to_dict()["layers"]
    told = []
    for key, limit in budget.limits:
        predicted, found = known[key].of(genotype, space), measured.get(key)
        last = predicted if found is None else found
        told.append(
            {
                "quantity": key,
                "limit": limit,
                "predicted": predicted,
                "measured": found,
                "aimed": aims[key],
                "slack": limit - last,
                "met": last <= limit,
            }
        )
    learned = run.strategy.traits.alphas
    ties = (
        near_ties(space, mixture, choice, limits, run.config.derive.tie_margin) if learned else []
    )
    at = {"device": cost.device(), "budget": budget.to_dict()}
    data = {
        **at,
        "genotype": genotype.to_dict()["layers"],
        "text": str(genotype),
        "programme": said,
        "limits": told,
        "ties": ties,
        "scores": "log of the mixture"
        if learned
        else "valid loss of each place alone, all else uniform",
    }
    write_json(run.file("budget.json"), data)
    write_json(
        run.file("pareto.json"),
        {
            **at,
            "quantity": quantity,
            "metric": run.metric.share,
            "part": "valid",
            "weights": "inherited from the supernet",
            "seeds": len(given),
            "points": points,
        },
    )
    return {**data, "quantity": quantity, "metric": run.metric.share, "front": points}


def place_scores(run: Run, given: list[Trained]) -> np.ndarray:
    """`[1 or L, 1 or H, K]`: the log of the mixture, the mean over seeds; where no alphas were
    learned, minus the valid loss with one candidate alone in one place and all others mixed
    evenly."""
    space = run.space
    rows, columns, candidates = space.alphas_shape
    if run.strategy.traits.alphas:
        return np.mean(
            [np.log(np.maximum(one.mixture[:rows, :columns], SMALLEST)) for one in given], 0
        )
    scores = np.zeros((rows, columns, candidates))
    places = {
        "model": lambda r, c: (slice(None), slice(None)),
        "layer": lambda r, c: (r, slice(None)),
        "head": lambda r, c: (r, c),
    }[space.granularity]
    for r, c, k in np.ndindex(rows, columns, candidates):
        mixture = np.full(space.mixture_shape, 1 / candidates, np.float32)
        mixture[places(r, c)] = np.eye(candidates, dtype=np.float32)[k]
        scores[r, c, k] = -np.mean(
            [np.mean(one.evaluate(one.weights, mixture, None)["loss"]) for one in given]
        )
    return scores


def measure(run: Run, budget: Budget, genotype: Genotype) -> dict[str, float]:
    """Of what the budget limits and can be measured: milliseconds, and XLA's bytes of intermediate
    arrays."""
    wanted = {key for key, _ in budget.limits} & {"latency_ms", "memory_bytes"}
    if not wanted:
        return {}
    found = cost.model(
        run.model, genotype, batch=budget.batch, length=budget.length or None, phase=budget.phase
    )
    both = {"latency_ms": 1e3 * found.seconds.median, "memory_bytes": float(found.temp_bytes)}
    return {key: both[key] for key in wanted}


def front(
    run: Run, price: Price, scores: np.ndarray, inherits: Inherits, chosen: Genotype
) -> list[dict[str, Any]]:
    """The genotypes that are best within budgets from the cheapest to the dearest, the homogeneous
    and the chosen ones.

    Returns:
      A row for each, by cost: "cost", "loss" and "accuracy" (or "r2") on valid with inherited
        weights, "genotype",
      "text", "name" (of a homogeneous one, else None), "front" (no other is both cheaper and
      better), "chosen".
    """
    space, share = run.space, run.metric.share
    (least, cheapest), (most, _) = price.cheapest(space), price.most_expensive(space)
    found = [cheapest]
    for limit in np.geomspace(max(least, 1e-12), max(most, 1e-12), POINTS):
        choice = solve(space, scores, [(price, float(limit) * (1 + 1e-9))])
        assert within(space, choice, [(price, float(limit) * (1 + 1e-6))])
        found.append(space.genotype(choice))
    named = {g: to_text(g.layers[0][0]) for g in space.homogeneous()}
    rows: list[dict[str, Any]] = []
    for one in dict.fromkeys([*found, chosen, *named]):
        score = inherits(one)
        rows.append(
            {
                "cost": price.of(one, space),
                share: score[share],
                "loss": score["loss"],
                "genotype": one.to_dict()["layers"],
                "text": str(one),
                "name": named.get(one),
                "chosen": one == chosen,
            }
        )
    rows.sort(key=lambda row: (row["cost"], -row[share]))
    best = -np.inf
    for row in rows:
        row["front"] = row[share] > best
        best = max(best, row[share])
    return rows


def cheaper_and_better(
    points: list[dict[str, Any]], genotype: Genotype, share: str
) -> Genotype | None:
    """Of the `points` of a front, the best that costs no more than `genotype` and has more of
    `share`, if any."""
    own = next(row for row in points if row["genotype"] == genotype.to_dict()["layers"])
    best = max((row for row in points if row["cost"] <= own["cost"]), key=lambda row: row[share])
    return (
        Genotype.from_dict({"format": 1, "layers": best["genotype"]})
        if best[share] > own[share]
        else None
    )


def enforce(
    run: Run, given: list[Trained], genotype: Genotype, inherits: Inherits
) -> tuple[Genotype, dict[str, Any]]:
    """The genotype itself where it is within the search's budget, else the one that `resolve`
    finds; with details."""
    budget = run.budget
    assert budget is not None
    found = resolve(run, given, budget, inherits, run.prices)
    over = [
        f"{key} {number(run.prices[key].of(genotype, run.space))} against {number(limit)}"
        for key, limit in budget.limits
        if run.prices[key].of(genotype, run.space) > limit
    ]
    details = {k: v for k, v in found.items() if k != "front"}
    if not over:
        return genotype, {
            **details,
            "kept": True,
            "note": "the rule's own genotype is within the budget",
        }
    return Genotype.from_dict({"format": 1, "layers": found["genotype"]}), {
        **details,
        "kept": False,
        "note": f"the rule's own genotype is above the budget ({', '.join(over)}): this is the best within it",
    }
