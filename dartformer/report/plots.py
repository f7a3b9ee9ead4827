"""Figures for notebooks, the command line and the documentation."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from dartformer.attention import Attention, to_text
from dartformer.report import charts, drawing
from dartformer.report.chart import (
    COMPACT,
    NEUTRAL,
    Spec,
    category,
    colors,
    dashes,
    named_lines,
    quantity,
)
from dartformer.report.figure import Figure, alone, faceted, figure
from dartformer.report.matrices import Example, matrix
from dartformer.report.models import scores
from dartformer.results import AttentionMaps, Front, MapExample, ModelProfile, Profile, Results
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.maps import unpack
from dartformer.training import metric

PANELS = 24
"""Layers and heads of a search that have a panel; further ones have none."""

MAPS = 6, 8
"""Layers and heads of an example that have an attention map."""

LETTERED = 16
"""Tokens of an attention map that are written beside it; of longer ones none is."""

PANEL = 150
"""Pixels of a side of an attention map, about."""

SIGNED: Spec = {
    "domain": [-1, -0.5, 0, 0.25, 0.5, 0.75, 1],
    "range": ["#7f3b08", "#f1a340", "#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"],
    "interpolate": "rgb",
}
"""Colors of weights over the largest: blue above 0, orange below."""


class Cell(TypedDict):
    """A weight of an attention map: how much a query takes from a key."""

    panel: str
    query: str
    key: str
    weight: float


def genotype(chosen: Genotype, candidates: Sequence[str] = ()) -> Figure:
    """Layers by heads, colored by attention, with a legend."""
    layers = []
    for heads in chosen.layers:
        layers.append(list(map(to_text, heads)))
    return genotype_of(layers, candidates)


def genotype_of(layers: Sequence[Sequence[str]], candidates: Sequence[str] = ()) -> Figure:
    """`genotype` of attentions given as texts, which need not be known here."""
    return Figure(drawing.svg(drawing.draw(layers, candidates)))


def comparison(results: Results | Mapping[str, Any]) -> Figure:
    """The score on test of the found model and of every baseline.

    Takes what `evaluate` returns.
    """
    if not isinstance(results, Results):
        results = Results.from_dict(results)
    return alone(charts.comparison(scores(results), metric.find(results.measure)))


def trajectories(history: Sequence[Mapping[str, Any]], space: SearchSpace) -> Figure:
    """Mixture weights over the steps of one seed of a search, such as `SearchResult.history`."""
    steps, logged = [], []
    for line in history:
        if "mixture" in line:
            steps.append(line["step"])
            logged.append(line["mixture"])
    mixtures = np.array(logged).reshape(len(steps), *space.mixture_shape)  # [T, L, H, K]
    return weights(
        steps,
        np.stack([space.free(mixture) for mixture in mixtures])[None],
        list(map(to_text, space.candidates)),
        space.granularity,
    )


def weights(
    steps: Sequence[int], mixtures: np.ndarray, candidates: Sequence[str], granularity: str
) -> Figure:
    """Mixtures `[S, T, 1 or L, 1 or H, K]` over steps `[T]`, a panel for each of their rows."""
    seeds, _, rows, columns, _ = mixtures.shape
    lines = []
    # [0, 0], [0, 1], ...: of a large model the first layers have panels.
    for l, h in list(np.ndindex(rows, columns))[:PANELS]:
        title = _row_name(granularity, l, h)
        for s, t, k in np.ndindex(seeds, len(steps), len(candidates)):
            line = {"row": title, "seed": s, "step": steps[t], "attention": candidates[k]}
            weight = round(float(mixtures[s, t, l, h, k]), 4)  # halves the file
            lines.append(line | {"weight": weight})
    panel = charts.mixture_lines(candidates) | {"width": 150, "height": 110}
    return figure(faceted(panel, lines, "row", 4))


def _row_name(granularity: str, layer: int, head: int) -> str:
    if granularity == "model":
        return "all layers"
    if granularity == "layer":
        return f"layer {layer}"
    if granularity == "kv_group":
        return f"layer {layer}, KV group {head}"
    return f"layer {layer}, head {head}"


def pareto(front: Front) -> Figure:
    """Scores with inherited weights over cost: what `derive --budget` chose from."""
    return alone(charts.pareto(front))


def attention_maps(maps: AttentionMaps, example: MapExample) -> Figure:
    """The attention maps of one example, at most six layers of eight heads."""
    arrays = unpack(example, len(maps.layers), len(maps.heads))  # [L, H, n, n]
    cells = []
    for l, layer in enumerate(maps.layers[: MAPS[0]]):
        for h, head in enumerate(maps.heads[: MAPS[1]]):
            cells += _cells(f"layer {layer}, head {head}", arrays[l, h], example.tokens)
    columns = min(len(maps.heads), MAPS[1])  # a row of panels for each layer
    return _heatmaps(cells, columns, lettered=len(example.tokens) <= LETTERED)


def matrices(
    attentions: Sequence[Attention],
    text: str = "abacabad eebbccdd abacabad",
    *,
    causal: bool = False,
    seed: int = 0,
) -> Figure:
    """What each attention's outputs take from which tokens: queries downward, keys to the right.

    Each letter of `text` is a random vector: letters attend to their like, as far as an attention
    lets them. An attention without weights is drawn by the derivatives of its definition.
    """
    example = Example.of(text, seed)
    cells = []
    for attention in attentions:
        # A long name may be broken after its first parenthesis, where `fill` needs a space.
        name = to_text(attention).replace("(", "( ", 1)
        title = textwrap.fill(name, 34).replace("( ", "(")
        cells += _cells(title, matrix(attention, example, causal=causal), text)
    return _heatmaps(cells, 5, lettered=True)


def _cells(title: str, weights: np.ndarray, tokens: Sequence[str]) -> list[Cell]:
    """The rows of one panel: weights over the largest."""
    # Of an attention that takes nothing from anywhere the largest is 0.
    largest = max(float(np.abs(weights).max()), 1e-12)
    names = [f"{i} {token}" for i, token in enumerate(tokens)]
    cells: list[Cell] = []
    for q, k in np.ndindex(weights.shape):
        weight = round(float(weights[q, k]) / largest, 3)
        cells.append({"panel": title, "query": names[q], "key": names[k], "weight": weight})
    return cells


def _heatmaps(cells: Sequence[Cell], columns: int, *, lettered: bool) -> Figure:
    """A panel for each matrix."""
    tokens = len({cell["key"] for cell in cells})  # named by number and text, so all differ
    # Cells of whole pixels leave no seams between them.
    side = {"step": max(1, round(PANEL / tokens))}
    panel = charts.heat(SIGNED, None) | {"width": side, "height": side}
    for channel, edge in (("x", "bottom"), ("y", "left")):
        encoding = panel["encoding"][channel]
        encoding["title"] = None
        if lettered:
            encoding["axis"] |= {"labelFontSize": 6, "labelOverlap": False, "orient": edge}
        else:
            encoding["axis"] = None
    return figure(faceted(panel, cells, "panel", columns, independent=("x", "y")))


class Measure(NamedTuple):
    """A number of a profile that has a panel."""

    title: str
    of: Callable[[ModelProfile], float | None]


def _milliseconds(model: ModelProfile) -> float | None:
    if model.latency_seconds is None:
        return None
    return 1e3 * model.latency_seconds.median


def _megaflops(model: ModelProfile) -> float | None:
    if model.flops is None:
        return None
    return model.flops / 1e6


def _kibibytes(model: ModelProfile) -> float:
    return model.state_bytes / 2**10


MEASURES = (
    Measure("latency, ms", _milliseconds),
    Measure("MFLOP executed", _megaflops),
    Measure("state when decoding, KiB", _kibibytes),
)


def profile(measured: Profile) -> Figure:
    """What `dartformer profile` measured: lines over several lengths, or bars."""
    models = measured.sweep or measured.models
    rows = []
    for measure in MEASURES:
        for model in models:
            value = measure.of(model)
            if not value:  # nothing measured, or no state to keep
                continue
            row = {"measure": measure.title, "model": model.name}
            rows.append(row | {"length": model.length, "value": value})
    names: list[str] = []
    lengths = set()
    for model in models:
        lengths.add(model.length)
        if model.name not in names:
            names.append(model.name)
    panel: Spec
    if len(lengths) > 1:
        # Over lengths costs grow as powers, which are straight lines on logarithmic axes.
        panel = {
            "width": 220,
            "height": 200,
            "mark": {"type": "line", "point": True},
            "encoding": {
                "x": quantity("length", "length", scale={"type": "log"}, axis=POWERS),
                "y": quantity("value", None, scale={"type": "log"}, axis=COMPACT),
                **named_lines("model", names),
            },
        }
        separate = ["y"]
    else:
        panel = {
            "width": 180,
            "height": 20 * len(names),
            "mark": "bar",
            "encoding": {
                "x": quantity("value", None, axis=COMPACT | {"tickCount": 4}),
                "y": category("model", sort=names, title=None, axis={"labelLimit": 260}),
                "color": category("model", scale=colors(names), legend=None),
            },
        }
        separate = ["x"]
    where = f"{measured.device}; batch {measured.batch}, {measured.phase}"
    title = {"text": where, "fontSize": 11, "fontWeight": 400, "color": NEUTRAL}
    # Each measure has its own unit, so panels share the other axis alone.
    panels = faceted(panel, rows, "measure", len(MEASURES), independent=separate)
    return figure({"title": title, **panels})


POWERS: Spec = {"format": ",d", "labelOverlap": True, "grid": False}
"""An axis of lengths."""


class Growth(NamedTuple):
    """What an attention costs at several lengths.

    Attributes:
      name: of the attention.
      lengths: of the input.
      ms: milliseconds, forward and backward.
      mib: MiB kept meanwhile.
    """

    name: str
    lengths: Sequence[int]
    ms: Sequence[float]
    mib: Sequence[float]


def growth(attentions: Sequence[Growth]) -> Figure:
    """Time and memory over length, a line for each attention, named where it ends."""
    panels = []
    for title, field in (("forward and backward, ms", "ms"), ("kept meanwhile, MiB", "mib")):
        lines = {}
        for attention in attentions:
            values = zip(attention.lengths, getattr(attention, field), strict=True)
            # A logarithmic axis has no place for 0.
            points = [(length, value) for length, value in values if value > 0]
            if points:
                lines[attention.name] = points
        panels.append(_growth_panel(lines, title))
    # An attention without a number in a panel must not take a color there.
    return figure({"hconcat": panels, "resolve": {"scale": {"color": "independent"}}})


def _growth_panel(lines: Mapping[str, Sequence[tuple[int, float]]], title: str) -> Spec:
    """Lines by name on logarithmic axes, with their names to the right."""
    names = list(lines)
    rows = []
    present, values = set(), []
    for name, points in lines.items():
        for length, value in points:
            rows.append({"attention": name, "length": length, "value": value})
            present.add(length)
            values.append(value)
    lengths = sorted(present)
    low, high = min(values), max(values)
    margin = lengths[-1] * 1.3  # where the names begin
    labels = _labels(lines, low, high, margin)
    x = {"type": "log", "domain": [lengths[0], margin], "nice": False}
    y = {"type": "log", "domain": [low, high], "nice": False}
    look = {
        "color": category("attention", sort=names, scale=colors(names), legend=None),
    }
    dash = category("attention", sort=names, scale=dashes(names), legend=None)
    x_of_line = quantity("length", "length N", scale=x, axis=POWERS | {"values": lengths})
    y_of_line = quantity("value", title, scale=y, axis=COMPACT)
    curve = {
        "mark": {"type": "line", "strokeWidth": 1.3, "point": {"size": 12}},
        "encoding": {"x": x_of_line, "y": y_of_line, "strokeDash": dash, **look},
    }
    leader = {
        "data": {"values": labels},
        "mark": {"type": "rule", "strokeWidth": 0.7},
        "encoding": {
            "x": x_of_line,
            "y": y_of_line,
            "x2": {"field": "beside"},
            "y2": {"field": "height"},
            **look,
        },
    }
    names_beside = {
        "data": {"values": labels},
        "mark": {"type": "text", "align": "left", "dx": 3, "fontSize": 8, "clip": False},
        "encoding": {
            "x": quantity("beside", "length N", scale=x),
            "y": quantity("height", title, scale=y),
            "text": category("label"),
        },
    }
    return {
        "width": 380,
        "height": max(300, 12 * len(names)),
        "data": {"values": rows},
        "layer": [curve, leader, names_beside],
    }


def _labels(
    lines: Mapping[str, Sequence[tuple[int, float]]], low: float, high: float, margin: float
) -> list[dict[str, str | float]]:
    """The names of lines, apart from each other, and where the lines end that they belong to."""
    ends = {}
    for name, points in lines.items():
        _, ends[name] = points[-1]
    labels = []
    for name, height in spread_out(ends, low, high).items():
        length, value = lines[name][-1]
        label: dict[str, str | float] = {"attention": name, "label": _shortened(name)}
        label |= {"length": length, "value": value, "beside": margin, "height": height}
        labels.append(label)
    return labels


def _shortened(name: str) -> str:
    """An attention without its options, where these are long."""
    if len(name) < 36:
        return name
    return f"{name.split('(')[0]}(...)"


def spread_out(values: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """Near each value, on a logarithmic axis, a height that is apart from all others.

    Args:
      values: by name, between `low` and `high`, the ends of the axis.
    """
    names = sorted(values, key=lambda name: values[name])
    gap = 1 / max(len(names), 36)  # the height of a name, or less where there are many
    span = math.log(high / low) or 1.0  # of equal values any span will do
    heights: list[float] = []  # shares of the axis
    for name in names:
        height = math.log(values[name] / low) / span
        if heights:
            height = max(height, heights[-1] + gap)
        heights.append(height)
    # Those that were pushed above the axis push back.
    for i in range(len(heights)):
        above = len(heights) - 1 - i
        heights[i] = min(heights[i], 1 - gap * above)
    spread = {}
    for name, height in zip(names, heights, strict=True):
        spread[name] = low * math.exp(height * span)
    return spread
