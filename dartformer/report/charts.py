"""The report's charts as Vega-Lite: a specification and rows of numbers, plain data; how they look
is the page's."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dartformer.report.plots import FAR, colour
from dartformer.training.metric import Metric


@dataclass(frozen=True)
class Chart:
    """One figure of a page.

    Attributes:
      name: an identifier, which also names the CSV file.
      title, alt: heading, and what a person who cannot see it should know.
      spec: Vega-Lite without data; its rows are named `rows`.
      columns, rows: the numbers that are drawn, which are those of the CSV file.
      note: what was left out, if anything.
    """

    name: str
    title: str
    alt: str
    spec: dict[str, Any]
    columns: tuple[str, ...]
    rows: list[list[Any]] = field(repr=False)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"name": self.name, "spec": self.spec, "columns": self.columns, "rows": self.rows}


def colours(names: Sequence[str]) -> dict[str, list[str]]:
    """A Vega scale that gives each name the colour of its number."""
    return {"domain": list(names), "range": [colour(i) for i in range(len(names))]}


def dashes(count: int) -> list[list[int]]:
    """A dash pattern for each of `count` lines: the nine colours that are told apart best, then
    again, dashed."""
    return [([1, 0], [6, 3], [2, 2])[i // 9 % 3] for i in range(count)]


def _pick(name: str, label: str, options: Sequence[str]) -> dict[str, Any]:
    """A parameter with a select box."""
    return {
        "name": name,
        "value": options[0],
        "bind": {"input": "select", "options": list(options), "name": label},
    }


TIDY = {"tooltip": {"content": "data"}}
LEGEND = {"orient": "bottom", "labelLimit": 320, "title": None, "symbolOpacity": 1}


def comparison(results: Mapping[str, Any], metric: Metric, first: str = "found") -> Chart:
    """The metric on test of the found model and of every baseline: a bar for the mean, a dot for
    each seed."""
    rows: list[list[Any]] = []
    for name, fields in [(first, results), *results["baselines"].items()]:
        test = fields["test"]
        rows.append([name, "mean", None, metric.number(test[metric.name])])
        seeds = results.get("seeds", [])
        rows += [
            [name, "seed", seed, metric.number(one)]
            for seed, one in zip(seeds, test.get("per_seed", []), strict=False)
        ]
    order = list(dict.fromkeys(row[0] for row in rows))
    title = f"test {metric.title}{', %' if metric.percent else ''}"
    y = {
        "field": "model",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"labelLimit": 180},
    }
    x = {"field": "value", "type": "quantitative", "title": title}
    found = {
        "condition": {"test": "datum.model == 'found'", "value": colour(0)},
        "value": "#9aa3af",
    }
    return Chart(
        "comparison",
        f"Test {metric.title}",
        "Bars: "
        + "; ".join(
            f"{row[0]} {metric.text(row[3] / (100 if metric.percent else 1))}"
            for row in rows
            if row[1] == "mean"
        ),
        {
            "height": 26 * len(order),
            "layer": [
                {
                    "transform": [{"filter": "datum.kind == 'mean'"}],
                    "mark": {"type": "bar", **TIDY},
                    "encoding": {"y": y, "x": x, "color": found},
                },
                {
                    "transform": [{"filter": "datum.kind == 'seed'"}],
                    "mark": {
                        "type": "point",
                        "filled": True,
                        "size": 34,
                        "color": "#111827",
                        "stroke": "#ffffff",
                        "opacity": 1,
                        **TIDY,
                    },
                    "encoding": {"y": y, "x": x},
                },
            ],
        },
        ("model", "kind", "seed", "value"),
        rows,
        "Bars are means over the seeds, dots are seeds.",
    )


def frontier(points: Sequence[tuple[float, float]], higher: bool) -> list[int]:
    """Numbers of the points (cost, score) that no other point beats in both, by rising cost."""
    sign = 1.0 if higher else -1.0
    front: list[int] = []
    best = -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if sign * points[i][1] > best:
            best = sign * points[i][1]
            front.append(i)
    return front


def accuracy_cost(models: Sequence[Mapping[str, Any]], metric: Metric, part: str) -> Chart | None:
    """Score over cost, the Pareto front joined; None where no cost is known of two models.

    Args:
      models: each with "model", "score" and costs under their names ("FLOPs", ...).
      metric, part: what the score is, of which part of the data.
    """
    measures = list(dict.fromkeys(k for m in models for k in m if k not in ("model", "score")))
    rows: list[list[Any]] = []
    for measure in measures:
        known = [m for m in models if m.get(measure) is not None]
        front = set(frontier([(m[measure], m["score"]) for m in known], metric.higher))
        if len(known) > 1:
            rows += [
                [measure, m["model"], m[measure], metric.number(m["score"]), i in front]
                for i, m in enumerate(known)
            ]
    if not rows:
        return None
    title = f"{part} {metric.title}{', %' if metric.percent else ''}"
    x = {
        "field": "cost",
        "type": "quantitative",
        "title": "cost",
        "scale": {"zero": False, "padding": 20},
        "axis": {"format": "~s", "tickCount": 5},
    }
    y = {
        "field": "score",
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False, "padding": 14},
    }
    kind = {
        "field": "kind",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": ["found", "other"], "range": [colour(0), "#7b8494"]},
    }
    used = list(dict.fromkeys(row[0] for row in rows))
    return Chart(
        "accuracy_cost",
        "Accuracy against cost" if metric.name == "accuracy" else "Score against cost",
        f"Points: {title} of each model over its cost. On the Pareto front by {used[0]}: "
        + ", ".join(row[1] for row in rows if row[0] == used[0] and row[4]),
        {
            "height": 300,
            "params": [_pick("measure", "cost: ", used)],
            "transform": [
                {"filter": "datum.measure == measure"},
                {
                    "calculate": "slice(datum.model, 0, 5) == 'found' ? 'found' : 'other'",
                    "as": "kind",
                },
                {"calculate": "replace(datum.model, 'homogeneous.', '')", "as": "label"},
            ],
            "layer": [
                {
                    "transform": [{"filter": "datum.front"}],
                    "mark": {
                        "type": "line",
                        "interpolate": "step-after",
                        "color": "#D55E00",
                        "strokeDash": [5, 4],
                    },
                    "encoding": {"x": x, "y": y},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, **TIDY},
                    "encoding": {
                        "x": x,
                        "y": y,
                        "color": kind,
                        "shape": {
                            "field": "kind",
                            "type": "nominal",
                            "scale": {"domain": ["found", "other"], "range": ["diamond", "circle"]},
                            "legend": None,
                        },
                    },
                },
                {
                    "mark": {
                        "type": "text",
                        "fontSize": 11,
                        "limit": 170,
                        "dy": {"expr": "datum.kind == 'found' ? 17 : -11"},
                    },
                    "encoding": {
                        "x": x,
                        "y": y,
                        "text": {"field": "label", "type": "nominal"},
                        "color": kind,
                    },
                },
            ],
        },
        ("measure", "model", "cost", "score", "front"),
        rows,
        "The dashed line is the Pareto front: nothing left of it scores as well."
        if metric.higher
        else "The dashed line is the Pareto front: nothing left of it scores as low.",
    )


def pareto(data: Mapping[str, Any]) -> Chart:
    """The front of a search space that `derive --budget` wrote to `pareto.json`: inherited weights,
    on valid."""
    share, dearest = data["metric"], max(p["cost"] for p in data["points"])
    limit = data["budget"].get(data["quantity"])
    rows = [
        [p["name"] or "", p["cost"], p[share], bool(p["front"]), bool(p["chosen"])]
        for p in data["points"]
    ]
    x = {
        "field": "cost",
        "type": "quantitative",
        "title": data["quantity"],
        "scale": {"zero": False, "padding": 20},
        "axis": {"format": "~s" if dearest >= 1e4 else "~g", "tickCount": 5},
    }
    y = {
        "field": "score",
        "type": "quantitative",
        "title": f"{share} on valid, inherited weights",
        "scale": {"zero": False, "padding": 14},
    }
    tone = {
        "condition": [
            {"test": "datum.chosen", "value": "#D55E00"},
            {"test": "datum.front", "value": colour(0)},
        ],
        "value": "#7b8494",
    }
    shape = {"condition": {"test": "datum.chosen", "value": "diamond"}, "value": "circle"}
    chosen = [f"{row[1]:.4g} with {row[2]:.3f}" for row in rows if row[4]]
    return Chart(
        "pareto",
        "The space within a budget",
        f"Points: {share} of genotypes over {data['quantity']}; "
        f"{sum(row[3] for row in rows)} of {len(rows)} are on the front. Chosen: {', '.join(chosen) or 'none'}",
        {
            "height": 300,
            "layer": [
                {
                    "transform": [{"filter": "datum.front"}],
                    "mark": {"type": "line", "interpolate": "step-after", "color": colour(0)},
                    "encoding": {"x": x, "y": y},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, **TIDY},
                    "encoding": {
                        "x": x,
                        "y": y,
                        "color": tone,
                        "shape": shape,
                        "size": {"condition": {"test": "datum.chosen", "value": 200}, "value": 70},
                    },
                },
                {
                    "mark": {
                        "type": "text",
                        "fontSize": 11,
                        "dy": -11,
                        "limit": 170,
                        "color": "#7b8494",
                    },
                    "encoding": {"x": x, "y": y, "text": {"field": "genotype", "type": "nominal"}},
                },
                *(
                    [
                        {
                            "mark": {"type": "rule", "strokeDash": [5, 4], "color": "#D55E00"},
                            "encoding": {"x": {"datum": limit}},
                        }
                    ]
                    if limit and limit < FAR * dearest
                    else []
                ),
            ],
        },
        ("genotype", "cost", "score", "front", "chosen"),
        rows,
        "The diamond is what the budget chose; the line "
        "joins the front. Scored on valid with the weights of the supernet, which nothing was trained from."
        + (
            f" The budget, {limit:,.4g}, is "
            + ("dashed." if limit < FAR * dearest else "far to the right.")
            if limit
            else ""
        ),
    )


FIELDS = {
    "loss": "training loss",
    "valid_loss": "valid loss",
    "accuracy": "training accuracy",
    "valid_accuracy": "valid accuracy",
    "valid_r2": "valid share of variance explained",
    "valid_bits_per_character": "valid bits per character",
    "valid_discrete_accuracy": "valid accuracy of the search, discretised",
    "entropy": "entropy of the mixture, share of ln K",
    "curvature": "dominant eigenvalue of d2L/dalpha2",
    "gradient_norm": "gradient norm",
    "rate": "learning rate",
    "weights_rate": "learning rate of the weights",
    "alphas_rate": "learning rate of the alphas",
}
"""Numbers of `metrics.jsonl` that have a curve, in words."""


def curves(found: Sequence[Any]) -> Chart | None:
    """Everything logged over steps, one number at a time; `found` are `stages.reading.Curve`s."""
    shown = [c for c in found if c.field in FIELDS]
    if not shown:
        return None
    models = sorted(
        {c.model for c in shown}, key=lambda m: ({"found": 0, "search": 1}.get(m, 2), m)
    )
    fields = [text for name, text in FIELDS.items() if any(c.field == name for c in shown)]
    rows = [
        [FIELDS[c.field], c.model, -1 if c.seed is None else c.seed, step, float(f"{value:.6g}")]
        for c in shown
        for step, value in c.points
    ]
    drawn, logged = len(rows), sum(c.logged for c in shown)
    return Chart(
        "curves",
        "Loss and accuracy over steps",
        f"Lines over steps for {', '.join(models)}; choose among {', '.join(fields)}",
        {
            "height": 280,
            "params": [_pick("number", "number: ", fields)],
            "transform": [{"filter": "datum.number == number"}],
            "mark": {"type": "line", "strokeWidth": 1.6, "point": False, **TIDY},
            "encoding": {
                "x": {"field": "step", "type": "quantitative", "title": "step"},
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "title": None,
                    "scale": {"zero": False},
                },
                "detail": {"field": "seed", "type": "nominal"},
                "strokeDash": {
                    "field": "model",
                    "type": "nominal",
                    "sort": models,
                    "legend": LEGEND,
                    "scale": {"domain": models, "range": dashes(len(models))},
                },
                "color": {
                    "field": "model",
                    "type": "nominal",
                    "scale": colours(models),
                    "legend": LEGEND,
                },
            },
        },
        ("number", "model", "seed", "step", "value"),
        rows,
        "One line for each seed."
        + (
            ""
            if drawn == logged
            else f" {drawn:,} of {logged:,} logged points are drawn, "
            "the lowest and highest of each stretch among them; metrics.jsonl has them all."
        ),
    )


def trajectories(found: Any, candidates: Sequence[str]) -> tuple[Chart, dict[str, Any]]:
    """Weights of one place's mixture over the steps, with the data of all places
    (`stages.reading.Trajectory`).

    The weights travel as base64 of little-endian uint16, `[S, T, rows, columns, K]` in 1/65535.
    """
    _, steps, rows, columns, k = found.weights.shape
    packed = np.round(np.clip(found.weights, 0, 1) * 65535).astype("<u2")
    last = found.weights[0, -1]
    sure = [
        f"{candidates[int(last[r, c].argmax())]} {last[r, c].max():.2f}"
        for r in range(min(rows, 3))
        for c in range(min(columns, 2))
    ]
    spec = {
        "height": 260,
        "params": [{"name": "now", "value": found.steps[-1]}],
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 2, **TIDY},
                "encoding": {
                    "x": {"field": "step", "type": "quantitative", "title": "search step"},
                    "y": {
                        "field": "weight",
                        "type": "quantitative",
                        "title": "weight in the mixture",
                        "scale": {"domain": [0, 1]},
                    },
                    "strokeDash": {
                        "field": "attention",
                        "type": "nominal",
                        "sort": list(candidates),
                        "legend": LEGEND,
                        "scale": {"domain": list(candidates), "range": dashes(k)},
                    },
                    "color": {
                        "field": "attention",
                        "type": "nominal",
                        "scale": colours(candidates),
                        "legend": LEGEND,
                    },
                },
            },
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "strokeDash": [3, 3], "color": "#7b8494"},
                "encoding": {"x": {"datum": {"expr": "now"}, "type": "quantitative"}},
            },
        ],
    }
    note = (
        "" if steps == found.logged else f" {steps} of {found.logged:,} logged steps are kept here."
    )
    more = "..." if rows * columns > len(sure) else ""
    chart = Chart(
        "trajectories",
        "How the search decided",
        "Lines: the weight of each candidate over the steps. "
        f"At the last step the largest weights are {', '.join(sure)}{more}",
        spec,
        ("step", "attention", "weight"),
        [],
        note,
    )
    return chart, {
        "seeds": found.seeds,
        "steps": found.steps,
        "shape": list(found.weights.shape),
        "candidates": list(candidates),
        "colours": colours(candidates)["range"],
        "data": base64.b64encode(packed.tobytes()).decode(),
    }


def winners(rows: int, candidates: Sequence[str]) -> Chart:
    """The heaviest candidate of each place at the step of the slider; its rows are set by the
    page."""
    return Chart(
        "winners",
        "Heaviest candidate at the step",
        "Cells: layers by heads, coloured by the candidate with "
        "the largest weight, the fainter the smaller its weight",
        {
            "height": rows * max(5, min(28, 320 // rows)),
            "mark": {"type": "rect", "stroke": None, **TIDY},
            "encoding": {
                "x": {
                    "field": "head",
                    "type": "ordinal",
                    "axis": {"labelAngle": 0, "labelOverlap": True},
                },
                "y": {"field": "layer", "type": "ordinal", "axis": {"labelOverlap": True}},
                "color": {
                    "field": "attention",
                    "type": "nominal",
                    "scale": colours(candidates),
                    "legend": None,
                },
                "opacity": {
                    "field": "weight",
                    "type": "quantitative",
                    "legend": None,
                    "scale": {"domain": [0, 1], "range": [0.12, 1]},
                },
            },
        },
        ("layer", "head", "attention", "weight"),
        [],
    )


COSTS = {
    "flops": "FLOPs of the attentions",
    "activation_bytes": "activation bytes",
    "state_bytes": "bytes of state",
}


def layers(profile: Mapping[str, Any]) -> Chart | None:
    """Cost of each layer's attentions in the profiled models; None for a profile that has no
    layers."""
    rows: list[list[Any]] = []
    for model in profile["models"]:
        for l, one in enumerate(model.get("layers", [])):
            rows += [[COSTS[k], model["name"], l, v] for k, v in one.items() if k in COSTS]
    if not rows:
        return None
    names, measures = (list(dict.fromkeys(row[i] for row in rows)) for i in (1, 0))
    count = len(profile["models"][0]["layers"])
    return Chart(
        "cost_per_layer",
        "Cost of each layer",
        f"Bars for {count} layers: what the attentions of a layer cost by "
        f"formula, of the model chosen among {', '.join(names)}",
        {
            "height": 220,
            "params": [_pick("model", "model: ", names), _pick("measure", "cost: ", measures)],
            "transform": [{"filter": "datum.model == model && datum.measure == measure"}],
            "mark": {"type": "bar", "color": colour(0), **TIDY},
            "encoding": {
                "x": {
                    "field": "layer",
                    "type": "ordinal",
                    "axis": {"labelAngle": 0, "labelOverlap": True},
                },
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "title": None,
                    "axis": {"format": "~s"},
                },
            },
        },
        ("measure", "model", "layer", "value"),
        rows,
        f"By formula, at batch {profile['batch']} and length {profile['length']}, projections excluded.",
    )


def attention_map() -> Chart:
    """One head's weights on one example; its rows are set by the page."""
    scale = {"scheme": "blues", "domainMin": 0}
    axis = {
        "labelAngle": -90,
        "labelOverlap": True,
        "labelFontSize": 9,
        "tickSize": 0,
        "labelLimit": 60,
        "labelExpr": "split(datum.label, '\\u0001')[1]",
    }
    return Chart(
        "attention",
        "What the model attends to",
        "Cells: how much each token, downward, takes from each "
        "token, to the right, in the chosen layer and head on the chosen example",
        {
            "height": 420,
            "mark": {"type": "rect", **TIDY},
            "encoding": {
                "x": {
                    "field": "key",
                    "type": "ordinal",
                    "sort": None,
                    "title": "key: takes from",
                    "axis": {**axis, "orient": "top"},
                },
                "y": {
                    "field": "query",
                    "type": "ordinal",
                    "sort": None,
                    "title": "query: what takes",
                    "axis": {**axis, "labelAngle": 0},
                },
                "color": {
                    "field": "weight",
                    "type": "quantitative",
                    "scale": scale,
                    "legend": {"orient": "bottom", "title": "weight", "gradientLength": 160},
                },
            },
        },
        ("query", "key", "weight"),
        [],
    )
