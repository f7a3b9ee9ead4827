"""Compare: several runs beside each other, their seeds, their genotypes, and whether their
difference is real."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dartformer import diagnostics
from dartformer.errors import InputError
from dartformer.machine.workdir import write_text
from dartformer.report import charts
from dartformer.report import page as report
from dartformer.report.reading import Reading, describe, read
from dartformer.stages import scores
from dartformer.training import metric

SHOWN = 30
"""Places of a genotype's differences that are listed; the rest are counted."""


def compare(paths: Sequence[str | Path]) -> dict[str, Any]:
    """What two or more workdirs found, as plain data: `metric`, `runs` and `pairs` (see `row`,
    `pair`).

    Every pair is compared twice, which asks different things: over the seeds (Welch's interval, as
    in the report: would other seeds say the same?) and over the test examples, paired (a bootstrap:
    would other examples?). Raises `InputError` for fewer than two workdirs, one named twice, or
    tasks that are scored differently."""
    if len(paths) < 2:
        raise InputError(f"compare takes at least two workdirs, got {len(paths)}.")
    if len({Path(p).resolve() for p in paths}) < len(paths):
        raise InputError(f"compare takes different workdirs, got {', '.join(map(str, paths))}.")
    found = {str(p): read(p) for p in paths}
    evaluated = [r for r in found.values() if "test" in r.results]
    measures = {metric.of(r.results).name for r in evaluated}
    if len(measures) > 1:
        raise InputError(
            f"these runs are scored differently ({', '.join(sorted(measures))}): they cannot be compared."
        )
    shown = metric.of(evaluated[0].results) if evaluated else metric.ACCURACY
    given = {name: scores.read(r.path) for name, r in found.items()}
    return {
        "metric": shown.name,
        "runs": [row(name, r) for name, r in found.items()],
        "pairs": [pair(a, b, found, given, shown) for a, b in itertools.combinations(found, 2)],
    }


def row(name: str, found: Reading) -> dict[str, Any]:
    """One run: what it found and how well that did; None for what is not known yet."""
    results, config = found.results, found.config
    test, shown = results.get("test", {}), metric.of(results)
    majority = results.get("baselines", {}).get("majority", {}).get("test", {}).get(shown.name)
    return {
        "run": name,
        "task": config["task"]["name"],
        "strategy": config["search"]["strategy"]["name"],
        "genotype": describe(found.genotype) if found.genotype else None,
        "test": test.get(shown.name),
        "spread": test.get("spread"),
        "per_seed": test.get("per_seed"),
        "seeds": results.get("seeds"),
        "steps": results.get("steps"),
        "majority": majority,
        "parameters": results.get("parameters"),
        "flops": results.get("flops"),
        "seconds": sum(results.get("seconds", {}).values()) or None,
    }


def pair(
    a: str, b: str, found: dict[str, Reading], given: dict[str, Any], shown: metric.Metric
) -> dict[str, Any]:
    """Two runs: sentences for the seeds and for the examples, the bootstrap's numbers, where the
    genotypes differ."""
    ours, theirs = found[a].results.get("test"), found[b].results.get("test")
    layers = found[a].genotype, found[b].genotype
    made: dict[str, Any] = {
        "a": a,
        "b": b,
        "bootstrap": None,
        "genotypes": differences(layers[0], layers[1]) if layers[0] and layers[1] else None,
    }
    tasks = [found[name].config["task"]["name"] for name in (a, b)]
    if tasks[0] != tasks[1]:
        return {
            **made,
            "seeds": f"different tasks: {' and '.join(tasks)}",
            "examples": "different tasks",
        }
    if ours is None or theirs is None:
        late = ", ".join(name for name, test in ((a, ours), (b, theirs)) if test is None)
        return {
            **made,
            "seeds": f"not evaluated yet: {late}",
            "examples": f"not evaluated yet: {late}",
        }
    made["seeds"] = diagnostics.compare(
        a, ours["per_seed"], b, theirs["per_seed"], rows_counted=ours["examples"], metric=shown
    )
    made["examples"], made["bootstrap"] = bootstrap(a, b, given, shown)
    return made


def bootstrap(
    a: str, b: str, given: dict[str, Any], shown: metric.Metric
) -> tuple[str, dict[str, Any] | None]:
    """A sentence, and the numbers of `diagnostics.paired_bootstrap` where there can be any."""
    missing = [name for name in (a, b) if given[name] is None]
    if missing:
        return (
            f"no pairs: {', '.join(missing)} kept no scores of test examples (test_scores.json): evaluate again",
            None,
        )
    if given[a]["fingerprint"] != given[b]["fingerprint"]:
        return "no pairs: the two were tested on different examples", None
    result = diagnostics.paired_bootstrap(given[a]["models"]["found"], given[b]["models"]["found"])
    higher, points = given[a]["higher"], shown.percent
    scale, unit = (100, " points") if points else (1, "")
    what = "" if given[a]["score"] == shown.name else f" in {given[a]['score']}"
    numbers = (
        f"{scale * result.difference:+.{1 if points else 3}f}{unit}{what}, 95% interval "
        f"{scale * result.low:+.{1 if points else 3}f} to {scale * result.high:+.{1 if points else 3}f}, "
        f"p {'<' if result.p <= 1 / 2000 else '='} {max(result.p, 1 / 2000):.2g}, "
        f"{given[a]['examples']:,} examples"
    )
    if result.low <= 0 <= result.high:
        return f"{a} and {b} cannot be told apart ({numbers})", result._asdict()
    verb = "beats" if (result.difference > 0) == higher else "loses to"
    return f"{a} {verb} {b} ({numbers})", result._asdict()


def differences(ours: list[list[str]], theirs: list[list[str]]) -> dict[str, Any]:
    """Places where two genotypes differ: `count` of `places`, and lines for the first of them."""
    shapes = [(len(g), len(g[0])) for g in (ours, theirs)]
    if shapes[0] != shapes[1]:
        return {
            "count": None,
            "places": None,
            "lines": [
                f"{shapes[0][0]} layers of {shapes[0][1]} heads against {shapes[1][0]} of {shapes[1][1]}"
            ],
        }
    lines, count = [], 0
    for l, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        where = [h for h in range(len(mine)) if mine[h] != other[h]]
        count += len(where)
        if where and len(set(mine)) == len(set(other)) == 1:
            lines.append(f"layer {l}: {mine[0]} against {other[0]}")
        else:
            lines += [f"layer {l}, head {h}: {mine[h]} against {other[h]}" for h in where]
    return {
        "count": count,
        "places": shapes[0][0] * shapes[0][1],
        "lines": lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []),
    }


def page(data: dict[str, Any]) -> str:
    """The comparison in the looks of a report."""
    shown = metric.find(data["metric"])
    found = {r["run"]: read(r["run"]) for r in data["runs"]}
    scored = [r for r in data["runs"] if r["test"] is not None]
    figures: list[charts.Chart | None] = []
    if scored:
        figures.append(
            charts.comparison(
                {
                    "test": {shown.name: scored[0]["test"], "per_seed": scored[0]["per_seed"]},
                    "seeds": scored[0]["seeds"],
                    "baselines": {
                        r["run"]: {"test": {shown.name: r["test"], "per_seed": r["per_seed"]}}
                        for r in scored[1:]
                    },
                },
                shown,
                first=scored[0]["run"],
            )
        )
        figures.append(
            charts.accuracy_cost(
                [
                    {
                        "model": r["run"],
                        "score": r["test"],
                        "FLOPs of a forward pass": r["flops"],
                        "parameters": r["parameters"],
                        "seconds of the whole run": r["seconds"],
                    }
                    for r in scored
                ],
                shown,
                "test",
            )
        )
    kept = [
        replace(c, model=name if c.model == "found" else f"{name}: search")
        for name, one in found.items()
        for c in one.curves
        if c.model in ("found", "search")
    ]
    figures.append(charts.curves(kept))
    named = {c.name: c for c in figures if c is not None}
    drawn, extra = [], dict[str, Any]()
    candidates = list(dict.fromkeys(c for one in found.values() for c in one.candidates))
    for i, (name, one) in enumerate(found.items()):
        if one.genotype:
            drawn.append((f"genotype-{i}", name, report.drawing(one.genotype, candidates)))
            extra[f"genotype-{i}"] = {
                "columns": ("layer", "head", "attention"),
                "rows": [
                    (l, h, a) for l, heads in enumerate(one.genotype) for h, a in enumerate(heads)
                ],
            }
    return report.page(
        "compare.html",
        title=f"{len(found)} runs compared",
        figures=named,
        extra=extra,
        live=False,
        data_=data,
        shown=shown,
        drawn=drawn,
        first=headline(data),
    )


def headline(data: dict[str, Any]) -> str:
    """The best run by its mean, and whether the next is told apart from it."""
    shown = metric.find(data["metric"])
    scored = sorted(
        (r for r in data["runs"] if r["test"] is not None),
        key=lambda r: -shown.objective({shown.name: r["test"]}),
    )
    if len(scored) < 2:
        return "Fewer than two of these runs are evaluated: there is nothing to compare yet."
    best, second = scored[:2]
    between = next(p for p in data["pairs"] if {p["a"], p["b"]} == {best["run"], second["run"]})
    sure = (
        between["bootstrap"] is not None
        and not between["bootstrap"]["low"] <= 0 <= between["bootstrap"]["high"]
        and " ties with " not in between["seeds"]
        and "too few seeds" not in between["seeds"]
    )
    return (
        f"{best['run']} has the best test {shown.title}, {shown.text(best['test'])}, before {second['run']}, "
        f"{shown.text(second['test'])}"
        + (
            ": more than seeds and test examples explain."
            if sure
            else ": no more than seeds or test examples may explain."
        )
    )


def write(data: dict[str, Any], file: str | Path) -> None:
    """`page`, to a file."""
    write_text(Path(file), page(data))
