"""The page of a probe suite: what each model can do, and how much state it keeps for that."""

from pathlib import Path

from dartformer.machine.workdir import write_text
from dartformer.report import charts, page
from dartformer.report.models import Priced
from dartformer.stages.probe import Probed
from dartformer.training.metric import ACCURACY

FILE = "probes.html"
"""The page, in the folder of the suite."""


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


def write(probed: Probed, file: Path) -> None:
    """The page, to a file."""
    priced = []
    for model in probed.models:
        costs = {"bytes of state": model.state_bytes, "parameters": model.parameters}
        priced.append(Priced(model.name, model.score, costs))
    figures = charts.by_name([charts.accuracy_cost(priced, ACCURACY)])
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
