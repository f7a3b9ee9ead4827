"""Evaluate: the one place that reads the test part, after everything is chosen; writes
`results.json`, `test_scores.json` and `attention.json`."""

from typing import Any

import numpy as np

from dartformer import cost, diagnostics
from dartformer.attention import to_text
from dartformer.stages import maps, scores
from dartformer.stages.retrain import Model, best
from dartformer.stages.study import Run
from dartformer.tasks.base import Learns, majority
from dartformer.training.metric import ACCURACY, Metric


def evaluate(
    run: Run, models: list[Model], baselines: dict[str, list[Model]] | None = None
) -> dict[str, Any]:
    """Score models and baselines on test and put everything into `results.json`; returns its
    content."""
    baselines = baselines or {}
    scored: dict[int, dict[str, Any]] = {}
    examples: dict[int, list[dict[str, np.ndarray]]] = {}

    def score(trained: list[Model]) -> dict[str, Any]:
        if id(trained) not in scored:
            scored[id(trained)], examples[id(trained)] = _score(run, trained)
        return scored[id(trained)]

    parts = run.parts
    metric = run.metric.name
    simple = {
        **({"majority": majority(parts["train"], parts["test"])} if metric == "accuracy" else {}),
        **run.task.baselines(parts["train"], parts["test"]),
    }
    fields: dict[str, Any] = {name: {"test": {metric: value}} for name, value in simple.items()}
    fields.update({name: score(trained) for name, trained in baselines.items()})
    ours = score(models)
    seconds = run.results().get("seconds", {})
    if isinstance(run.task, Learns):
        run.record(data=run.task.facts(run.config.data.dir or None))
    scores.write(
        run,
        {name: examples[id(trained)] for name, trained in {"found": models, **baselines}.items()},
    )
    maps.maps(run, best(models))
    ranked = _ranking(run, fields)
    return run.record(
        **({"diagnostics": ranked} if ranked else {}),
        **ours,
        metric=metric,
        seeds=list(run.config.retrain.seeds),
        baselines=fields,
        seconds=seconds,
        verdict=verdict(ours, fields, len(parts["test"]), run.metric),
    )


def _ranking(run: Run, fields: dict[str, Any]) -> dict[str, Any]:
    """The search's diagnostics with the agreement of its ranking and that of the candidates trained
    alone, on valid."""
    found = run.results().get("diagnostics", {})
    names = {to_text(g.layers[0][0]) for g in run.space.homogeneous()}
    sign = 1 if run.metric.higher else -1
    trained = {
        n: [sign * v for v in fields[f"homogeneous.{n}"]["valid"]["per_seed"]]
        for n in names
        if f"homogeneous.{n}" in fields
    }
    if "alone" not in found or set(trained) != names:
        return {}
    finding = diagnostics.ranking(
        {n: found["alone"][n][run.metric.share] for n in trained}, trained
    )
    others = [f for f in found["findings"] if f["name"] != finding.name]
    return {**found, **diagnostics.judged([*others, finding])}


def _score(run: Run, trained: list[Model]) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """The fields of `results.json`, and what `Evaluator.per_example` gives, for each seed."""
    evaluator = run.program(trained[0].genotype).evaluator
    test, each = zip(
        *(evaluator.evaluate(model.weights, run.parts["test"]) for model in trained), strict=True
    )
    metric = run.metric.name
    per_seed = [found[metric] for found in test]
    valid = [model.valid[metric] for model in trained]
    return {
        "test": {
            metric: float(np.mean(per_seed)),
            "spread": diagnostics.spread(per_seed),
            "per_seed": per_seed,
            "loss": float(np.mean([found["loss"] for found in test])),
            "examples": len(run.parts["test"]),
        },
        "valid": {metric: float(np.mean(valid)), "per_seed": valid},
        "parameters": cost.parameters(trained[0].weights),
        "flops": cost.flops(run.model, trained[0].genotype),
        "steps": run.config.retrain.steps,
        "genotype": trained[0].genotype.to_dict(),
    }, list(each)


def verdict(
    ours: dict[str, Any], baselines: dict[str, Any], examples: int, metric: Metric = ACCURACY
) -> list[str]:
    """Sentences: how the found model compares with each kind of baseline; a winner only beyond the
    seeds' noise."""
    mine = ours["test"]["per_seed"]
    sentences = []
    homogeneous = {n: b for n, b in baselines.items() if n.startswith("homogeneous.")}
    if homogeneous:
        # Chosen on valid, like everything that is chosen; its test accuracy is only reported.
        best = max(homogeneous, key=lambda n: metric.objective(homogeneous[n]["valid"]))
        if homogeneous[best]["genotype"] == ours["genotype"]:
            sentences.append(
                f"the found model is the best homogeneous one ({best.removeprefix('homogeneous.')})"
            )
        else:
            sentences.append(
                diagnostics.compare(
                    "the found model",
                    mine,
                    f"the best homogeneous one ({best.removeprefix('homogeneous.')})",
                    homogeneous[best]["test"]["per_seed"],
                    rows_counted=examples,
                    metric=metric,
                )
            )
    for name, words in (
        ("random", "a random genotype"),
        ("uniform_mixing", "all candidates mixed uniformly"),
    ):
        if name in baselines:
            sentences.append(
                diagnostics.compare(
                    "the found model",
                    mine,
                    words,
                    baselines[name]["test"]["per_seed"],
                    rows_counted=examples,
                    metric=metric,
                )
            )
    simple = {n: b["test"] for n, b in baselines.items() if "valid" not in b}
    if simple:
        name = max(simple, key=lambda n: metric.objective(simple[n]))
        value = simple[name][metric.name]
        gap = float(np.mean(mine)) - value
        sentences.append(
            f"it is {metric.gap(abs(gap))} {'above' if gap >= 0 else 'below'} the rule {name!r} "
            f"({metric.text(value)})"
        )
    return sentences
