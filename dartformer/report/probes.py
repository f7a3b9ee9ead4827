"""The page of a probe suite: what each model can do, and how much state it keeps for that."""

from pathlib import Path

from dartformer.machine.workdir import write_text
from dartformer.report import charts, page
from dartformer.report.chart import ACCENT, NEUTRAL, TOOLTIP, Chart, Choice, category, quantity
from dartformer.stages.probe import Probed
from dartformer.training.metric import ACCURACY

FILE = "probes.html"
"""The page, in the folder of the suite."""

MEAN = "mean"
"""The probe that stands for the mean over all of them."""

SMALLEST = 256
"""Bytes of state below which the axis is linear."""

KIB = {"labelExpr": "datum.value < 1024 ? datum.value + ' B' : datum.value / 1024 + ' KiB'"}
"""An axis of bytes."""


def headline(probed: Probed) -> str:
    """The model with the highest score, in a sentence."""
    first = probed.models[0]
    score = ACCURACY.text(first.score)
    count = len(first.probes)
    if len(probed.models) == 1:
        return f"{first.name} scores {score}, the mean over {count} probes."
    second = probed.models[1]
    return (
        f"{first.name} scores highest, {score} as the mean over {count} probes; "
        f"{second.name} follows with {ACCURACY.text(second.score)}."
    )


def by_state(probed: Probed) -> Chart:
    """Accuracy over the bytes of state: the mean over the probes, or one of them at a time."""
    rows: list[tuple[str, str, float, float]] = []
    for model in probed.models:
        rows.append((MEAN, model.name, model.state_bytes, ACCURACY.number(model.score)))
        for probe in model.probes:
            row = (probe.probe, model.name, probe.state_bytes, ACCURACY.number(probe.test))
            rows.append(row)
    probes = [probe.probe for probe in probed.models[0].probes]
    # Logarithmic but near 0, which is the state of a model that reads no other token.
    largest = max(state for _, _, state, _ in rows)
    # From below 0, so that a model without state stands clear of the axis.
    domain = [-SMALLEST / 2, max(2 * largest, SMALLEST)]
    scale = {"type": "symlog", "constant": SMALLEST, "domain": domain, "nice": False}
    x = quantity("state", "bytes of state", scale=scale, axis={"values": _ticks(domain[1]), **KIB})
    y = quantity("accuracy", charts.score_title(ACCURACY), scale={"domain": [0, 105]})
    points = {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, **TOOLTIP},
        "encoding": {"x": x, "y": y, "color": {"value": ACCENT}},
    }
    names = {
        "mark": {"type": "text", "fontSize": 11, "limit": 170, "dy": -11, "color": NEUTRAL},
        "encoding": {"x": x, "y": y, "text": category("model")},
    }
    in_words = []
    for model in probed.models:
        score = ACCURACY.text(model.score)
        in_words.append(f"{model.name} {score} with {model.state_bytes:,.0f} bytes")
    return Chart(
        "by_state",
        "Accuracy against state",
        f"Points: {'; '.join(in_words)}",
        {"height": 300, "layer": [points, names]},
        ("probe", "model", "state", "accuracy"),
        rows,
        "State is what a model keeps between tokens when it decodes an example of full length.",
        (Choice("probe", "probe", [MEAN, *probes]),),
    )


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
        has_lengths=any(probe.at_lengths for probe in probed.models[0].probes),
    )
    write_text(file, text)
