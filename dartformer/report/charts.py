"""The charts of a run. Each is drawn on the page, one choice at a time, and to files."""

import base64
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dartformer.report import bracket
from dartformer.report.chart import (
    ACCENT,
    ALERT,
    COMPACT,
    LEGEND,
    NEUTRAL,
    PALETTE,
    TOOLTIP,
    Chart,
    Choice,
    Row,
    Spec,
    category,
    colors,
    named_lines,
    place,
    quantity,
)
from dartformer.report.models import Priced, Score, title_of
from dartformer.report.reading import FOUND, Curve, Trajectory
from dartformer.results import Derivation, Front, FrontPoint, Profile, RaceRecord, finite
from dartformer.training.metric import Metric, decimals

FAR = 1.3
"""A budget beyond this many times the largest cost is not drawn: it would press all points
together."""


def score_title(metric: Metric) -> str:
    """The title of an axis of scores."""
    if metric.percent:
        return f"test {metric.title}, %"
    return f"test {metric.title}"


DOTS = ("mean and 95% interval", "one seed", "simple rule")
"""What the dots of a comparison are, as its legend says."""

FARTHEST = 3.0
"""Times the range of the models beyond which a rule is not drawn: it would press the models
together, whose differences are what to see."""


def comparison(scores: Sequence[Score], metric: Metric) -> Chart:
    """The score on test of every model: a dot with its interval, and a small dot for each seed.

    The axis shows the differences and does not begin at 0.
    """
    ranked = sorted(scores, key=lambda score: score.mean, reverse=metric.higher)
    drawn, beyond = _near(ranked)
    rows: list[Row] = []
    labels: list[Spec] = []
    for score in drawn:
        mean = metric.number(score.mean)
        kind = DOTS[0]
        if score.rule:
            kind = DOTS[2]
        error = metric.number(score.error or 0.0)
        rows.append((score.model, kind, None, mean, mean - error, mean + error))
        for seed, value in score.per_seed.items():
            number = metric.number(value)
            rows.append((score.model, DOTS[1], seed, number, number, number))
        # Its text is that of the tables: JavaScript rounds 10.25 up and Python rounds it down.
        text = metric.text(score.mean).removesuffix("%")
        labels.append({"model": score.model, "text": text})
    order = [score.model for score in drawn]  # not that of the alphabet, which is Vega's
    y = category("model", sort=order, title=None, axis={"labelLimit": 260})
    span = {"domain": _span(rows, metric), "nice": False}
    x = quantity("value", score_title(metric), scale=span)
    is_found = f"slice(datum.model, 0, {len(FOUND)}) == '{FOUND}'"
    tone = {"condition": {"test": is_found, "value": ACCENT}, "value": "#4b5563"}
    shapes = {"domain": list(DOTS), "range": ["circle", "cross", "square"]}
    intervals = {
        "transform": [{"filter": f"datum.kind == '{DOTS[0]}'"}],
        "mark": {"type": "rule", "strokeWidth": 2.5, **TOOLTIP},
        "encoding": {
            "y": y,
            "x": quantity("low", score_title(metric), scale=span),
            "x2": {"field": "high"},
            "color": tone,
        },
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, **TOOLTIP},
        "encoding": {
            "y": y,
            "x": x,
            "shape": category("kind", legend=LEGEND, scale=shapes),
            "color": tone,
        },
    }
    # The number stands to the right of the interval and of the seeds.
    lookup = {"data": {"values": labels}, "key": "model", "fields": ["text"]}
    numbers = {
        "transform": [
            {
                "joinaggregate": [{"op": "max", "field": "high", "as": "edge"}],
                "groupby": ["model"],
            },
            {"filter": f"datum.kind != '{DOTS[1]}'"},
            {"lookup": "model", "from": lookup},
        ],
        "mark": {"type": "text", "align": "left", "dx": 9, "fontSize": 11, "color": NEUTRAL},
        "encoding": {
            "y": y,
            "x": quantity("edge", score_title(metric), scale=span),
            "text": category("text"),
        },
    }
    in_words = []
    for score in ranked:
        in_words.append(f"{score.model} {metric.text(score.mean)}")
    note = (
        "Means over the seeds with their 95% intervals; of one seed, over the examples. The axis "
        "is cut to what differs."
    )
    if beyond:
        far = ", ".join(f"{score.model} {metric.text(score.mean)}" for score in beyond)
        note += f" Too far away to be drawn: {far}."
    return Chart(
        "comparison",
        f"Test {metric.title}",
        f"Dots with intervals: {'; '.join(in_words)}",
        {"height": 30 * len(order), "layer": [intervals, dots, numbers]},
        ("model", "kind", "seed", "value", "low", "high"),
        rows,
        note,
    )


def _span(rows: Sequence[Row], metric: Metric) -> list[float]:
    """The ends of an axis: a little more than what is drawn, and of a share no more than there is."""
    values: list[float] = []
    for row in rows:
        for value in row[-3:]:
            if isinstance(value, float) and finite(value):
                values.append(value)
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin
    if metric.percent:
        low, high = max(low, 0.0), min(high, 100.0)
    return [low, high]


def _near(ranked: Sequence[Score]) -> tuple[list[Score], list[Score]]:
    """The models with the rules that are near them, and the rules that are far."""
    values = []
    for score in ranked:
        if not score.rule and finite(score.mean):
            error = score.error or 0.0
            values += [score.mean - error, score.mean + error, *score.per_seed.values()]
    if not values:
        return list(ranked), []
    low, high = min(values), max(values)
    near, far = [], []
    for score in ranked:
        distance = max(low - score.mean, score.mean - high)
        if score.rule and not distance <= FARTHEST * (high - low):
            far.append(score)
        else:
            near.append(score)
    return near, far


TONES = {
    bracket.WINNER: ACCENT,
    bracket.FINALIST: "#111827",
    bracket.STOPPED: "#9aa3af",
    bracket.REFERENCE: "#d97706",
}
"""The color of what became of an entrant."""


def race(record: RaceRecord) -> Chart:
    """The score on valid of every entrant of a race, over the steps at which it was compared."""
    metric = bracket.metric_of(record)
    rows: list[Row] = []
    for entrant in record.entrants:
        fate = bracket.fate_of(record, entrant)
        points = {look.step: look.score for look in entrant.looks}
        if entrant.stopped_at is None:
            points[record.steps] = entrant.valid  # the mean over the seeds
        for step, score in points.items():
            if score is not None:
                rows.append((title_of(entrant.name), fate, step, metric.number(score)))
    present = {row[1] for row in rows}
    domain = [fate for fate in bracket.FATES if fate in present]
    tones = [TONES[fate] for fate in domain]
    color = category("fate", legend=LEGEND, scale={"domain": domain, "range": tones}, title=None)
    title = f"valid {metric.title}"
    if metric.percent:
        title += ", %"
    encoding = {
        "x": quantity("step", "training step"),
        "y": quantity("value", title, scale={"zero": False}),
        "detail": category("entrant"),
        "color": color,
    }
    marks = {"type": "line", "point": {"size": 40, "filled": True}, **TOOLTIP}
    stopped = sum(entrant.stopped_at is not None for entrant in record.entrants)
    return Chart(
        "race",
        "The race",
        f"{len(record.entrants)} entrants over their training steps; {stopped} stopped early, "
        f"and {title_of(record.winner)} won",
        {"height": 280, "mark": marks, "encoding": encoding},
        ("entrant", "fate", "step", "value"),
        rows,
        "A line ends where the entrant stopped. The last points of finalists are means over seeds.",
    )


def by_name(drawn: Iterable[Chart | None]) -> dict[str, Chart]:
    """The charts that there are numbers for, by name."""
    named = {}
    for chart in drawn:
        if chart is not None:
            named[chart.name] = chart
    return named


def frontier(points: Sequence[tuple[float, float]], higher: bool) -> list[int]:
    """Numbers of the points (cost, score) that no other point beats in both, by rising cost."""
    sign = -1.0
    if higher:
        sign = 1.0

    def cheapest_then_best(i: int) -> tuple[float, float]:
        cost, score = points[i]
        return cost, -sign * score

    front: list[int] = []
    best = -np.inf
    # By rising cost a point is on the front if nothing cheaper scores as well.
    for i in sorted(range(len(points)), key=cheapest_then_best):
        score = sign * points[i][1]
        if score > best:
            best = score
            front.append(i)
    return front


def accuracy_cost(models: Sequence[Priced], metric: Metric) -> Chart | None:
    """Score over cost with the Pareto front; None where no cost is known of two models."""
    rows: list[tuple[str, str, float, float, bool]] = []
    measures = []  # of the select box: costs that two models have
    for measure in _measures(models):
        priced = _priced_rows(models, measure, metric)
        if priced:
            measures.append(measure)
            rows += priced
    if not rows:
        return None
    x = quantity(
        "cost",
        "cost",
        scale={"zero": False, "padding": 40},  # room for the names of the outermost points
        axis=COMPACT | {"tickCount": 5},
    )
    y = quantity("score", score_title(metric), scale={"zero": False, "padding": 22})
    kinds = [FOUND, "other"]
    tone = category("kind", legend=LEGEND, scale={"domain": kinds, "range": [ACCENT, NEUTRAL]})
    shape = category("kind", legend=LEGEND, scale={"domain": kinds, "range": ["diamond", "circle"]})
    # In steps: between two points of the front the cheaper one is the best there is.
    front = {
        "transform": [{"filter": "datum.front"}],
        "mark": {"type": "line", "interpolate": "step-after", "color": ALERT, "strokeDash": [5, 4]},
        "encoding": {"x": x, "y": y},
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, **TOOLTIP},
        "encoding": {"x": x, "y": y, "color": tone, "shape": shape},
    }
    # Below the found model and above the others, so that names at one point do not overlap.
    below_or_above = {"expr": f"datum.kind == '{FOUND}' ? 17 : -11"}
    names = {
        "mark": {"type": "text", "fontSize": 11, "limit": 170, "dy": below_or_above},
        "encoding": {"x": x, "y": y, "text": category("label"), "color": tone},
    }
    # By its beginning: the name may go on, "found, which is ...".
    kind = f"slice(datum.model, 0, {len(FOUND)}) == '{FOUND}' ? '{FOUND}' : 'other'"
    transform = [
        {"calculate": kind, "as": "kind"},
        {"calculate": "datum.model", "as": "label"},
    ]
    title = "Score against cost"
    if metric.name == "accuracy":
        title = "Accuracy against cost"
    on_front = []
    for measure, name, _, _, best in rows:
        if best and measure == measures[0]:
            on_front.append(name)
    direction = "as low"
    if metric.higher:
        direction = "as well"
    return Chart(
        "accuracy_cost",
        title,
        f"Points: {score_title(metric)} of each model over its cost. On the Pareto front by "
        f"{measures[0]}: {', '.join(on_front)}",
        {"height": 300, "transform": transform, "layer": [front, points, names]},
        ("measure", "model", "cost", "score", "front"),
        rows,
        f"The dashed line is the Pareto front: nothing left of it scores {direction}.",
        (Choice("measure", "cost", measures, axis="x"),),
    )


def _measures(models: Sequence[Priced]) -> list[str]:
    """What is counted of any of the models."""
    names: dict[str, None] = {}
    for model in models:
        names |= dict.fromkeys(model.costs)
    return list(names)


def _priced_rows(
    models: Sequence[Priced], measure: str, metric: Metric
) -> list[tuple[str, str, float, float, bool]]:
    """A row for each model with this cost; none where it is known of one model alone."""
    names: list[str] = []
    points: list[tuple[float, float]] = []
    for model in models:
        cost = model.costs.get(measure)
        if cost is not None and finite(model.score):
            names.append(model.model)
            points.append((cost, model.score))
    if len(points) < 2:  # one point compares nothing
        return []
    front = frontier(points, metric.higher)
    rows = []
    for i, (cost, score) in enumerate(points):
        rows.append((measure, names[i], cost, metric.number(score), i in front))
    return rows


def pareto(front: Front) -> Chart:
    """The front of a search space: scores on valid with inherited weights, over cost."""
    rows = []
    largest = 0.0  # of the costs
    for point in front.points:
        largest = max(largest, point.cost)
        rows.append((point.name or "", point.cost, point.score, point.front, _kind(point)))
    title = front.quantity
    if "on" in front.budget:
        title = f"{title}, {front.device}"
    x = quantity(
        "cost",
        title,
        scale={"zero": False, "padding": 40},
        axis=COMPACT | {"tickCount": 5},
    )
    y = quantity(
        "score",
        f"{front.metric} on valid, inherited weights",
        scale={"zero": False, "padding": 22},
    )
    kinds = ["chosen", "front", "other"]
    tones = {"domain": kinds, "range": [ALERT, ACCENT, NEUTRAL]}
    shapes = {"domain": kinds, "range": ["diamond", "circle", "circle"]}
    line = {
        "transform": [{"filter": "datum.front"}],
        "mark": {"type": "line", "interpolate": "step-after", "color": ACCENT},
        "encoding": {"x": x, "y": y},
    }
    dots = {
        "mark": {"type": "point", "filled": True, "opacity": 1, **TOOLTIP},
        "encoding": {
            "x": x,
            "y": y,
            "color": category("kind", legend=LEGEND, scale=tones),
            "shape": category("kind", legend=LEGEND, scale=shapes),
            "size": {"condition": {"test": "datum.kind == 'chosen'", "value": 200}, "value": 70},
        },
    }
    names = {
        "mark": {"type": "text", "fontSize": 11, "dy": 14, "limit": 170, "color": NEUTRAL},
        "encoding": {"x": x, "y": y, "text": category("genotype")},
    }
    layers: list[Spec] = [line, dots, names]
    note = (
        "The diamond is what the budget chose; the line joins the front. Scored on valid with the "
        "weights inherited from the supernet, without further training."
    )
    # Far beyond every point a line would press the points together.
    limit = front.budget.get(front.quantity)
    if isinstance(limit, int | float) and limit < FAR * largest:
        dash = {"type": "rule", "strokeDash": [5, 4], "color": ALERT}
        layers.append({"mark": dash, "encoding": {"x": {"datum": limit}}})
        note += f" The budget, {limit:,.6g}, is dashed."
    elif isinstance(limit, int | float):
        note += f" The budget, {limit:,.6g}, is far to the right."
    chosen = []
    on_front = 0
    for point in front.points:
        on_front += point.front
        if point.chosen:
            chosen.append(f"{point.cost:.4g} with {decimals(point.score)}")
    return Chart(
        "pareto",
        "The space within a budget",
        f"Points: {front.metric} of genotypes over {front.quantity}; {on_front} of "
        f"{len(front.points)} are on the front. Chosen: {', '.join(chosen) or 'none'}",
        {"height": 300, "layer": layers},
        ("genotype", "cost", "score", "front", "kind"),
        rows,
        note,
    )


def _kind(point: FrontPoint) -> str:
    """What the legend calls a point."""
    if point.chosen:
        return "chosen"
    if point.front:
        return "front"
    return "other"


FIELDS = {
    "loss": "training loss",
    "valid_loss": "valid loss",
    "accuracy": "training accuracy",
    "valid_accuracy": "valid accuracy",
    "valid_r2": "valid share of variance explained",
    "valid_bits_per_character": "valid bits per character",
    "valid_discrete_loss": "valid loss of the search, discretized",
    "valid_discrete_accuracy": "valid accuracy of the search, discretized",
    "entropy": "entropy of the mixture, share of ln K",
    "curvature": "dominant eigenvalue of d2L/dalpha2",
    "gradient_norm": "gradient norm",
    "rate": "learning rate",
    "weights_rate": "learning rate of the weights",
    "alphas_rate": "learning rate of the alphas",
}
"""Numbers of `metrics.jsonl` that have a curve, in words."""


BAND = 300
"""Steps of a curve at which the mean over the seeds is drawn, at most."""


def curves(logged: Sequence[Curve]) -> Chart | None:
    """Everything logged over steps of the trainings, one number at a time; None where nothing is.

    A line is the mean over the seeds, and its band reaches from the lowest to the highest. A search
    trains another network on a part of train, so its curves are no rivals of these: see `searching`.
    """
    return _bands("curves", "Loss and accuracy over steps", logged)


def searching(logged: Sequence[Curve]) -> Chart | None:
    """What the search logged over its steps."""
    return _bands("search_curves", "Loss and accuracy of the supernet", logged)


def _bands(name: str, title: str, logged: Sequence[Curve]) -> Chart | None:
    grouped: dict[tuple[str, str], list[Curve]] = {}
    for curve in logged:
        if curve.field in FIELDS:
            grouped.setdefault((curve.field, curve.model), []).append(curve)
    if not grouped:
        return None
    rows: list[Row] = []
    present_models = set()
    for (field, model), of_seeds in grouped.items():
        present_models.add(model)
        for step, mean, low, high in _over_seeds(of_seeds):
            rows.append((FIELDS[field], model, step, mean, low, high))
    # Colors go by this order, so the found model always has the first.
    models = sorted(present_models, key=_found_first)
    # In the order of `FIELDS`: the first is drawn until the reader chooses another.
    present = {field for field, _ in grouped}
    numbers = [title for field, title in FIELDS.items() if field in present]
    color = named_lines("model", models)
    chosen = {"condition": {"param": "shown", "value": 1}, "value": 0.04}
    faint = {"condition": {"param": "shown", "value": 0.18}, "value": 0.0}
    x = quantity("step", "step")
    band = {
        "mark": {"type": "area"},
        "encoding": {
            "x": x,
            "y": quantity("low", None, scale={"zero": False}),
            "y2": {"field": "high"},
            "color": color["color"],
            "opacity": faint,
        },
    }
    shown = {"name": "shown", "select": {"type": "point", "fields": ["model"]}, "bind": "legend"}
    line = {
        "params": [shown],
        "mark": {"type": "line", "strokeWidth": 2, "point": False, **TOOLTIP},
        "encoding": {
            "x": x,
            "y": quantity("value", None, scale={"zero": False}),
            "opacity": chosen,
            **color,
        },
    }
    return Chart(
        name,
        title,
        f"Lines over steps for {', '.join(models)}; choose among {', '.join(numbers)}",
        {"height": 300, "layer": [band, line]},
        ("number", "model", "step", "value", "low", "high"),
        rows,
        "Lines are means over the seeds, bands reach from the lowest to the highest. Click a name "
        "in the legend to see it alone, and others with Shift. metrics.jsonl has every point.",
        (Choice("number", "number", numbers, axis="y"),),
    )


def _over_seeds(curves: Sequence[Curve]) -> Iterator[tuple[int, float, float, float]]:
    """(step, mean, lowest, highest) over seeds, whose curves may keep different steps.

    Only where all seeds are: a seed that stopped earlier would make a jump.
    """
    last = min(curve.points[-1][0] for curve in curves)
    steps: set[int] = set()
    for curve in curves:
        steps.update(step for step, _ in curve.points if step <= last)
    kept = sorted(steps)
    if len(kept) > BAND:
        numbers = np.linspace(0, len(kept) - 1, BAND).round().astype(int)
        kept = [kept[number] for number in numbers]
    values = []
    for curve in curves:
        at, value = np.array(curve.points, np.float64).T
        values.append(np.interp(kept, at, value))
    over = np.array(values)  # [seeds, steps]
    for i, step in enumerate(kept):
        column = over[:, i]
        yield step, _short(column.mean()), _short(column.min()), _short(column.max())


def _short(value: float) -> float:
    return float(f"{value:.6g}")  # halves the page


def _found_first(model: str) -> tuple[bool, str]:
    """A key to sort names of models."""
    return model != FOUND, model


def mixture_lines(candidates: Sequence[str]) -> Spec:
    """Lines of the candidates' weights over the steps; `detail` keeps seeds apart."""
    return {
        "mark": {"type": "line", "strokeWidth": 2, **TOOLTIP},
        "encoding": {
            "x": quantity("step", "search step"),
            "y": quantity("weight", "weight in the mixture", scale={"domain": [0, 1]}),
            "detail": category("seed"),
            **named_lines("attention", candidates),
        },
    }


def trajectories(trajectory: Trajectory, candidates: Sequence[str]) -> Chart:
    """Weights of one layer's or head's mixture over the steps; the page sets the rows."""
    # A rule at the step of the slider, which the page sets as the parameter `now`.
    now = {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "strokeDash": [3, 3], "color": NEUTRAL},
        "encoding": {"x": {"datum": {"expr": "now"}, "type": "quantitative"}},
    }
    spec = {
        "height": 260,
        "params": [{"name": "now", "value": trajectory.steps[-1]}],
        "layer": [mixture_lines(candidates), now],
    }
    _, steps, rows, columns, _ = trajectory.weights.shape
    last = trajectory.weights[0, -1]  # of the first seed, [rows, columns, K]
    largest = []
    # A few of them, as a sentence for a screen reader must be short.
    for row in range(min(rows, 3)):
        for column in range(min(columns, 2)):
            winner = int(last[row, column].argmax())
            largest.append(f"{candidates[winner]} {last[row, column, winner]:.2f}")
    in_words = ", ".join(largest)
    if rows * columns > len(largest):
        in_words += "..."
    note = ""
    if steps < trajectory.logged:
        note = f"{steps} of {trajectory.logged:,} logged steps are kept here."
    return Chart(
        "trajectories",
        "How the search decided",
        "Lines: the weight of each candidate over the steps. "
        f"At the last step the largest weights are {in_words}",
        spec,
        ("step", "attention", "weight"),
        (),
        note,
    )


def packed(trajectory: Trajectory, candidates: Sequence[str]) -> dict[str, object]:
    """The weights of all layers and heads for the page's script.

    They travel as base64 of little-endian uint16, `[S, T, rows, columns, K]` in 1/65535.
    """
    # A third of what the numbers would take as text, and still finer than a pixel.
    weights = np.round(np.clip(trajectory.weights, 0, 1) * 65535).astype("<u2")
    return {
        "seeds": trajectory.seeds,
        "steps": trajectory.steps,
        "shape": list(weights.shape),
        "candidates": list(candidates),
        "data": base64.b64encode(weights.tobytes()).decode(),
    }


def winners(rows: int, candidates: Sequence[str]) -> Chart:
    """The candidate with the largest weight at the step of the slider; the page sets the rows."""
    encoding = {
        "x": place("head", axis={"labelAngle": 0, "labelOverlap": True}),
        "y": place("layer", axis={"labelOverlap": True}),
        "color": category("attention", scale=colors(candidates), legend=LEGEND),
        "opacity": quantity(
            "weight", None, legend=None, scale={"domain": [0, 1], "range": [0.12, 1]}
        ),
    }
    # A cell of at least 5 pixels, though many layers then make the chart higher than 320.
    height = max(5, min(28, 320 // rows))
    return Chart(
        "winners",
        "Largest weight at the step",
        "Cells: layers by heads, colored by the candidate with the largest weight, the fainter "
        "the smaller its weight",
        {
            "height": rows * height,
            "mark": {"type": "rect", "stroke": None, **TOOLTIP},
            "encoding": encoding,
        },
        ("layer", "head", "attention", "weight"),
        (),
    )


WITHOUT = {"loss": "rise of the loss without the candidate"}
"""Titles of an axis of what is lost, where the metric's name alone would not do."""


def dropping(derivation: Derivation) -> Chart | None:
    """What the supernet loses without each candidate of each place; None of other rules."""
    drops, metric = derivation.details.get("drops"), derivation.details.get("metric")
    if not isinstance(drops, dict):
        return None
    by_place: dict[str, dict[str, float]] = {}
    for name, lost in drops.items():
        if isinstance(lost, dict):
            by_place[name] = lost
    if not by_place:  # of rules that drop a candidate everywhere at once
        by_place = {"everywhere": drops}
    rows: list[Row] = []
    candidates: dict[str, None] = {}
    stakes = []
    for name, lost in by_place.items():
        for candidate, value in lost.items():
            candidates[candidate] = None
            rows.append((name, candidate, value))
        ordered = sorted(lost.values())
        stakes.append((ordered[-1] - ordered[0], name))
    largest, most = max(stakes)
    names = list(candidates)
    encoding = {
        "y": category("place", sort=list(by_place), title=None),
        "x": quantity("value", WITHOUT.get(str(metric), f"{metric} lost without the candidate")),
        "color": category("candidate", legend=LEGEND, sort=names, scale=colors(names)),
    }
    marks = {"type": "point", "filled": True, "size": 90, "opacity": 0.9, **TOOLTIP}
    return Chart(
        "dropping",
        "Which choice matters",
        f"Dots: what the supernet loses ({metric}) without each candidate, for each of "
        f"{len(by_place)} choices; most depends on {most}, a difference of {largest:.3g}",
        {"height": max(60, 30 * len(by_place)), "mark": marks, "encoding": encoding},
        ("place", "candidate", "value"),
        rows,
        f"A candidate to the right is missed; around 0 none is. Most depends on {most}.",
    )


COSTS = {
    "flops": "FLOPs of the attentions",
    "activation_bytes": "activation bytes",
    "state_bytes": "bytes of state",
}
"""Costs of a layer's attentions, in words."""


def layers(profile: Profile) -> Chart | None:
    """Cost of each layer's attentions in the profiled models; None for models without layers."""
    rows: list[tuple[str, str, int, float]] = []
    for model in profile.models:
        for number, price in enumerate(model.layers):
            for field, title in COSTS.items():
                rows.append((title, model.name, number, getattr(price, field)))
    if not rows:
        return None
    models: list[str] = []
    count = 0
    for model in profile.models:
        count = max(count, len(model.layers))
        if model.layers and model.name not in models:
            models.append(model.name)
    return Chart(
        "cost_per_layer",
        "Cost of each layer",
        f"Bars for {count} layers: the cost of a layer's attentions by formula, for the model "
        f"chosen among {', '.join(models)}",
        {
            "height": 220,
            "mark": {"type": "bar", "color": PALETTE[0], **TOOLTIP},
            "encoding": {
                "x": place("layer", axis={"labelAngle": 0, "labelOverlap": True}),
                "y": quantity("value", None, axis=COMPACT),
            },
        },
        ("measure", "model", "layer", "value"),
        rows,
        f"By formula, at batch {profile.batch} and length {profile.length}, projections excluded.",
        (
            Choice("model", "model", models),
            Choice("measure", "cost", list(COSTS.values()), axis="y"),
        ),
    )


def heat(scale: Spec, legend: Spec | None) -> Spec:
    """A matrix of weights: queries downward, keys to the right.

    A token is named by its number, a space and its text, as the same text may occur twice.
    """
    axis = {
        "labelAngle": -90,
        "labelOverlap": True,
        "labelFontSize": 9,
        "tickSize": 0,
        "labelLimit": 60,
        "labelExpr": "slice(datum.label, indexof(datum.label, ' ') + 1)",
    }
    # Keys stand above the matrix, as its first row is the first query.
    x_axis = axis | {"orient": "top"}
    y_axis = axis | {"labelAngle": 0}
    return {
        "mark": {"type": "rect", **TOOLTIP},
        "encoding": {
            "x": place("key", sort=None, title="key: takes from", axis=x_axis),
            "y": place("query", sort=None, title="query: what takes", axis=y_axis),
            "color": quantity("weight", "weight", scale=scale, legend=legend),
        },
    }


def attention_map() -> Chart:
    """One head's weights on one example; the page sets the rows."""
    legend = {"orient": "bottom", "gradientLength": 160}
    return Chart(
        "attention",
        "What the model attends to",
        "Cells: how much each token, downward, takes from each token, to the right, in the chosen "
        "layer and head on the chosen example",
        {"height": 420} | heat({"scheme": "blues", "domainMin": 0}, legend),
        ("query", "key", "weight"),
        (),
    )
