"""Report: what was found so far, in one self-contained page that needs no network, nor the run to
be over."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from dartformer._version import __version__
from dartformer.machine.progress import say
from dartformer.machine.workdir import jsonable, write_text
from dartformer.report import charts, vega
from dartformer.report.plots import colour
from dartformer.report.reading import Reading, describe, read
from dartformer.report.verdicts import MARKS, headline, hours, number, stopped
from dartformer.space.genotype import layer_in_words
from dartformer.training import metric

TITLED = 400
"""A drawing of a genotype with more cells than this has neither letters nor titles in them."""

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("dartformer.report", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
"""Everything that is put into a page is escaped, names of tasks and texts of examples above all."""

LINKS = {
    "config.json": "the whole config",
    "genotype.json": "layers and heads",
    "results.json": "every number",
    "search/alphas.json": "alphas and mixtures",
    "test_scores.json": "each test example's score",
    "attention.json": "attention maps",
    "profile.json": "cost on this device",
    "pareto.json": "models over cost",
    "provenance.json": "commands, versions, devices",
    "export/README.md": "the exported model's card",
}


def report(path: str | Path, *, live: bool = False) -> str:
    """Write `report.html` from what the workdir holds so far; returns the page. `live` is for a
    page that is served."""
    page = render(read(path), live=live)
    if not live:
        write_text(Path(path) / "report.html", page)
    return page


def refresh(path: str | Path) -> None:
    """`report`, of which nothing that goes wrong may stop a run: it is said in one line."""
    try:
        report(path)
    except Exception as error:
        say(
            f"report.html is not refreshed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )


def render(found: Reading, *, live: bool = False) -> str:
    """The page of a workdir."""
    results, config = found.results, found.config
    shown = metric.of(results)
    figures: dict[str, charts.Chart] = {}
    extra: dict[str, Any] = {}

    def add(chart: charts.Chart | None) -> None:
        if chart is not None:
            figures[chart.name] = chart

    if "baselines" in results:
        add(charts.comparison(results, shown))
        add(charts.accuracy_cost(costs(found), shown, "test"))
    if found.pareto and found.pareto.get("points"):
        add(charts.pareto(found.pareto))
    if found.trajectory is not None:
        chart, extra["trajectories"] = charts.trajectories(found.trajectory, found.candidates)
        add(chart)
        rows, columns = found.places
        if rows * columns > 1:
            add(charts.winners(rows, found.candidates))
    add(charts.curves(found.curves))
    if found.profile:
        add(charts.layers(found.profile))
    if found.attention and found.attention["examples"]:
        add(charts.attention_map())
        extra["attention"] = found.attention
    if found.genotype:
        extra["genotype"] = {
            "columns": ("layer", "head", "attention"),
            "rows": [(l, h, a) for l, row in enumerate(found.genotype) for h, a in enumerate(row)],
        }
    diagnostics = results.get("diagnostics") or (found.searched or {}).get("diagnostics")
    return page(
        "report.html",
        title=f"{config['task']['name']}: {_short(found)}",
        figures=figures,
        extra=extra,
        live=live,
        found=found,
        results=results,
        config=config,
        verdict=headline(found),
        genotype=drawing(found.genotype, found.candidates) if found.genotype else None,
        stages=stages(found),
        models=table(found),
        findings=(diagnostics or {}).get("findings", []),
        verdicts=(diagnostics or {}).get("verdicts", []),
        marks=MARKS,
        number=number,
        config_text=json.dumps(config, indent=2),
        facts=facts(found),
        prepared=json.dumps(results["data"], indent=2) if "data" in results else "",
        links=[(name, what) for name, what in LINKS.items() if (found.path / name).exists()],
        describe_layer=layer_in_words,
    )


def page(
    template: str, *, figures: dict[str, charts.Chart], extra: dict[str, Any], **given: Any
) -> str:
    """A page with its charts, their numbers and every script and style within it."""
    data = json.dumps(
        jsonable({"charts": [c.to_dict() for c in figures.values()], **extra}),
        separators=(",", ":"),
    ).replace("<", "\\u003c")
    source: Any = TEMPLATES.loader
    style, script = (source.get_source(TEMPLATES, name)[0] for name in ("report.css", "report.js"))
    return TEMPLATES.get_template(template).render(
        figures=figures,
        extra=extra,
        data=data,
        style=style,
        script=script,
        vega=vega.script() if figures else "",
        version=__version__,
        **given,
    )


def _short(found: Reading) -> str:
    return describe(found.genotype)[:80] if found.genotype else "no genotype yet"


def drawing(layers: list[list[str]], candidates: Sequence[str]) -> dict[str, Any]:
    """Layers by heads as shapes of an SVG: the cells of an attention are one path, with a letter in
    each if few.

    Letters and titles let a drawing be read without colours.
    """
    rows, columns = len(layers), len(layers[0])
    names = list(dict.fromkeys([*candidates, *(a for row in layers for a in row)]))
    counts = {n: sum(row.count(n) for row in layers) for n in names}
    used = [n for n in names if counts[n]]
    few = rows * columns <= TITLED
    size = 34 if few else 10
    paths = {
        n: "".join(
            f"M{h * size + 1} {l * size + 1}h{size - 2}v{size - 2}h{2 - size}z"
            for l in range(rows)
            for h in range(columns)
            if layers[l][h] == n
        )
        for n in used
    }
    letters = {n: chr(65 + i) if i < 26 else str(i) for i, n in enumerate(names)}
    tones = {n: colour(names.index(n)) for n in used}
    return {
        "rows": rows,
        "columns": columns,
        "size": size,
        "few": few,
        "layers": layers,
        "letters": letters,
        "width": columns * size + 44,
        "height": rows * size + 24,
        "text": describe(layers),
        "every": max(1, rows // 20 if not few else 1),
        "inks": {n: ink(t) for n, t in tones.items()},
        "legend": [
            {
                "name": n,
                "letter": letters[n],
                "colour": tones[n],
                "ink": ink(tones[n]),
                "path": paths[n],
                "count": counts[n],
            }
            for n in used
        ],
    }


def ink(tone: str) -> str:
    """Black or white, whichever is read better on a colour (the larger contrast of WCAG 2)."""
    parts = [int(tone[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    light = sum(
        w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4)
        for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )
    return "#000000" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "#ffffff"


def costs(found: Reading) -> list[dict[str, Any]]:
    """Every trained model with its score on test and what it costs, as far as that is known."""
    results, name = found.results, metric.of(found.results).name
    profiled = {json.dumps(m["genotype"]): m for m in (found.profile or {}).get("models", [])}
    models = []
    same = [n for n, b in results["baselines"].items() if b.get("genotype") == results["genotype"]]
    for model, fields in [("found", results), *results["baselines"].items()]:
        if "genotype" not in fields or model in same:
            continue
        measured = profiled.get(json.dumps(fields["genotype"]["layers"]), {})
        latency = (measured.get("latency_seconds") or {}).get("median")
        named = f"found, which is {same[0]}" if model == "found" and same else model
        models.append(
            {
                "model": named,
                "score": fields["test"][name],
                "FLOPs of a forward pass": fields.get("flops"),
                "parameters": fields.get("parameters"),
                "latency, ms": None if latency is None else 1e3 * latency,
                "bytes of the attentions' activations": measured.get("attention_activation_bytes"),
            }
        )
    return models


def table(found: Reading) -> list[dict[str, Any]]:
    """Rows of the table of models: each cell a text and what it is sorted by."""
    results = found.results
    if "baselines" not in results:
        return []
    shown = metric.of(results)
    rows = []
    for name, fields in [("found", results), *results["baselines"].items()]:
        test, valid = fields["test"], fields.get("valid", {})
        spread = test.get("spread")
        cells: list[tuple[str, Any]] = [
            (name, name),
            (shown.text(test[shown.name]), test[shown.name]),
            ("", "") if spread is None else (shown.gap(spread).removesuffix(" points"), spread),
            (shown.text(valid[shown.name]), valid[shown.name]) if valid else ("", ""),
            (f"{fields['parameters']:,}", fields["parameters"])
            if "parameters" in fields
            else ("", ""),
            (f"{fields['flops']:.3g}", fields["flops"]) if "flops" in fields else ("", ""),
        ]
        rows.append({"found": name == "found", "cells": cells})
    return rows


def stages(found: Reading) -> list[tuple[str, str, str]]:
    """For each stage its name, "done", "begun" or "open", and how far it is."""
    config, results, path = found.config, found.results, found.path
    steps = {(c.model, c.seed): c.points[-1][0] for c in found.curves if c.field == "loss"}
    searched = max([s for (m, _), s in steps.items() if m == "search"], default=0)
    seeds = config["retrain"]["seeds"]
    trained = [steps.get(("found", seed), 0) for seed in seeds]
    baselines = [s for (m, _), s in steps.items() if m not in ("search", "found")]
    whole = config["retrain"]["steps"]

    def of(done: bool, begun: bool, detail: str = "") -> tuple[str, str]:
        return ("done", "") if done else ("begun", detail) if begun else ("open", "")

    states = {
        "search": of(
            found.searched is not None,
            searched > 0,
            f"step {searched} of {config['search']['steps']}",
        ),
        "derive": of(found.genotype is not None, False),
        "retrain": of(
            all(s >= whole for s in trained),
            any(trained),
            f"{sum(s >= whole for s in trained)} of {len(seeds)} seeds, the last at step "
            f"{max([s for s in trained if s < whole], default=whole)} of {whole}",
        ),
        "evaluate": of(
            "verdict" in results,
            bool(baselines),
            f"{sum(s >= whole for s in baselines)} trainings of baselines finished",
        ),
        "profile": of(found.profile is not None, False),
        "export": of((path / "export/README.md").exists(), False),
    }
    return [(name, *state) for name, state in states.items()]


def facts(found: Reading) -> list[tuple[str, str]]:
    """How the numbers came about."""
    config, seconds = found.config, found.results.get("seconds", {})
    last = found.runs[-1] if found.runs else {}
    spent = sum(v for v in seconds.values())
    compiling = sum(v for k, v in seconds.items() if k.endswith(".compile"))
    commands = list(dict.fromkeys(one["command"] for one in found.runs))
    rows = [
        ("command", "\n".join(commands[-6:])),
        ("device", "; ".join(dict.fromkeys(one["device"] for one in found.runs))),
        ("versions", ", ".join(f"{k} {v}" for k, v in last.get("versions", {}).items())),
        (
            "seeds",
            f"search {', '.join(str(config['seed'] + i) for i in range(config['search']['seeds']))}; retrain "
            f"{', '.join(map(str, config['retrain']['seeds']))}",
        ),
        ("steps", f"search {config['search']['steps']:,}; retrain {config['retrain']['steps']:,}"),
        ("time", f"{hours(spent)}, of which {hours(compiling)} compiling" if seconds else ""),
        ("written", last.get("started", "")),
    ]
    return [(name, text) for name, text in rows if text]


TEMPLATES.globals.update(stopped=stopped, hours=hours)
