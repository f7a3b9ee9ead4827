"""The page of a probe suite: what each model can do, and how much state it keeps for that."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dartformer.machine.workdir import write_text
from dartformer.report import charts, page
from dartformer.report.chart import (
    ACCENT,
    ALERT,
    NEUTRAL,
    TOOLTIP,
    Chart,
    Choice,
    category,
    quantity,
)
from dartformer.stages.probe import Probed
from dartformer.statistics import mean
from dartformer.training.metric import ACCURACY

FILE = "probes.html"
"""The page, in the folder of the suite."""

MEAN = "mean"
"""The probe that stands for the mean over all of them."""

SMALLEST = 256
"""Bytes of state below which the axis is linear."""

COLUMN = 0.22
"""Share of the width that a column of names takes."""

GAP = 0.04
"""Share of the width between points and their names."""

STEP = 4.0
"""Per cent of accuracy that a line of text takes."""

TOP = 102.0
"""The highest place of a name."""

KIB = {"labelExpr": "datum.value < 1024 ? datum.value + ' B' : datum.value / 1024 + ' KiB'"}
"""An axis of bytes."""


def headline(probed: Probed) -> str:
    """The model with the highest score, in a sentence or two."""
    first = probed.models[0]
    count = len(first.probes)
    where = f"as the mean over {count} probes"
    if count == 1:
        where = f"on {first.probes[0].probe}"
    score = f"{ACCURACY.text(first.score)} {where}"
    if len(probed.models) == 1:
        return f"{first.name} scores {score}."
    second = probed.models[1]
    if second.score == first.score:
        tied = [model.name for model in probed.models if model.score == first.score]
        return f"{' and '.join(tied)} score highest, {score}."
    follows = f"{second.name} follows with {ACCURACY.text(second.score)}"
    return f"{first.name} scores highest, {score}. {follows}."


def by_state(probed: Probed) -> Chart:
    """Accuracy over the bytes of state: the mean over the probes, or one of them at a time."""
    states = [model.state_bytes for model in probed.models]
    for model in probed.models:
        states += [probe.state_bytes for probe in model.probes]
    largest = max(states)
    # Logarithmic but near 0, which is the state of a model that reads no other token. From below
    # 0, so that such a model stands clear of the axis; to the right there is room for names.
    domain = [-SMALLEST / 2, max(8 * largest, SMALLEST)]
    rows: list[tuple[str, str, float, float, float, float, float]] = []
    for choice in (MEAN, *(task.probe for task in probed.tasks)):
        rows += _rows_of(probed, choice, domain)
    scale = {"type": "symlog", "constant": SMALLEST, "domain": domain, "nice": False}
    axis = {"values": _ticks(2 * largest), **KIB}
    x = quantity("state", "state per example (bytes, logarithmic)", scale=scale, axis=axis)
    y = quantity("accuracy", charts.score_title(ACCURACY), scale={"domain": [0, 105]})
    points = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, **TOOLTIP},
        "encoding": {"x": x, "y": y, "color": {"value": ACCENT}},
    }
    label_x, label_y = x | {"field": "label_x"}, y | {"field": "label_y"}
    ends = {"x2": {"field": "label_x"}, "y2": {"field": "label_y"}}
    leaders = {
        "mark": {"type": "rule", "color": NEUTRAL, "strokeWidth": 0.5},
        "encoding": {"x": x, "y": y, **ends},
    }
    names = {
        "mark": {"type": "text", "fontSize": 11, "limit": 190, "align": "left", "dx": 3},
        "encoding": {
            "x": label_x,
            "y": label_y,
            "text": category("model"),
            "color": {"value": NEUTRAL},
        },
    }
    rule = {
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": ALERT},
        "encoding": {"y": y | {"field": "rule", "aggregate": "min"}},
    }
    rule_name = {
        "mark": {
            "type": "text",
            "fontSize": 11,
            "align": "left",
            "dx": 4,
            "dy": -7,
            "color": ALERT,
        },
        "encoding": {
            "x": {"value": 0},
            "y": y | {"field": "rule", "aggregate": "min"},
            "text": {"value": "best simple rule"},
        },
    }
    in_words = []
    for model in probed.models:
        score = ACCURACY.text(model.score)
        in_words.append(f"{model.name} {score} with {model.state_bytes:,.0f} bytes")
    return Chart(
        "by_state",
        "Accuracy against state",
        f"Points: {'; '.join(in_words)}",
        {"height": 400, "layer": [rule, rule_name, leaders, points, names]},
        ("probe", "model", "state", "accuracy", "rule", "label_x", "label_y"),
        rows,
        "State is what a model keeps between tokens when it decodes an example of full length. "
        "The dashed line is the best simple rule, which needs no model.",
        (Choice("probe", "probe", [MEAN, *(task.probe for task in probed.tasks)]),),
    )


class _Point(NamedTuple):
    """A model in the chart; accuracy in per cent."""

    model: str
    state: float
    accuracy: float


def _rows_of(
    probed: Probed, choice: str, domain: Sequence[float]
) -> list[tuple[str, str, float, float, float, float, float]]:
    """The rows of one probe, or of the mean over all."""
    points = []
    for model in probed.models:
        state, score = model.state_bytes, model.score
        for probe in model.probes:
            if probe.probe == choice:
                state, score = probe.state_bytes, probe.test
        points.append(_Point(model.name, state, ACCURACY.number(score)))
    bars = []
    for task in probed.tasks:
        if choice in (MEAN, task.probe):
            bars.append(task.rules[task.best_rule])
    rule = ACCURACY.number(mean(bars))
    rows = []
    for point, label in _labelled(points, domain):
        rows.append((choice, *point, rule, *label))
    return rows


def _labelled(
    points: Sequence[_Point], domain: Sequence[float]
) -> list[tuple[_Point, tuple[float, float]]]:
    """Points with places for their names, which do not overlap.

    Points with about the same state have their names in a column to the right of them, in the
    order of their accuracy."""
    low, high = _symlog(domain[0]), _symlog(domain[1])
    columns: list[list[_Point]] = []
    for point in sorted(points, key=lambda point: point.state):
        position = _symlog(point.state)
        if columns and position - _symlog(columns[-1][0].state) < COLUMN * (high - low):
            columns[-1].append(point)
        else:
            columns.append([point])
    placed = []
    for column in columns:
        right = _symlog(column[-1].state) + GAP * (high - low)
        x = SMALLEST * math.expm1(right)
        ordered = sorted(column, key=lambda point: -point.accuracy)
        heights = _apart([point.accuracy for point in ordered])
        for point, y in zip(ordered, heights, strict=True):
            placed.append((point, (x, y)))
    return placed


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights in falling order, moved as little as it takes to be `STEP` apart."""
    # Neighbours that are too close form a group around the mean of where its names belong.
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-2]) - _top(groups[-1]) < STEP:
            last = groups.pop()
            groups[-1] += last
    spread = []
    for group in groups:
        top = _top(group)
        spread += [top - STEP * i for i in range(len(group))]
    return spread


def _top(group: Sequence[float]) -> float:
    """The height of the first name of a group, all of which stays on the chart."""
    extent = STEP * (len(group) - 1)
    return max(min(mean(group) + extent / 2, TOP), extent)


def _bottom(group: Sequence[float]) -> float:
    return _top(group) - STEP * (len(group) - 1)


def _symlog(state: float) -> float:
    """A place on the axis."""
    return math.copysign(math.log1p(abs(state) / SMALLEST), state)


def _ticks(largest: float) -> list[float]:
    """0, and powers of four up to a number of bytes."""
    ticks, tick = [0.0], float(SMALLEST)
    while tick <= largest:
        ticks.append(tick)
        tick *= 4
    return ticks


def write(probed: Probed, file: Path) -> None:
    """The page, to a file."""
    figures = charts.by_name([by_state(probed)])
    text = page.fill(
        "probes.html",
        title=f"{len(probed.models)} models on {len(probed.models[0].probes)} probes",
        figures=figures,
        extra={},
        live=False,
        probed=probed,
        first=headline(probed),
        measure=ACCURACY,
        bars=[task.rules[task.best_rule] for task in probed.tasks],
        chances=[task.chance for task in probed.tasks],
        has_lengths=any(probe.at_lengths for probe in probed.models[0].probes),
    )
    write_text(file, text)
