"""The figures of a workdir, for papers and notebooks, saved as PDF, SVG or PNG."""

from pathlib import Path

from dartformer.errors import unknown
from dartformer.placement.study import is_placement
from dartformer.report import charts, placement, plots
from dartformer.report.chart import Chart
from dartformer.report.figure import KINDS, Figure, alone
from dartformer.report.models import priced, trained_curves
from dartformer.report.reading import Reading, read


def figures(reading: Reading) -> dict[str, Figure]:
    """Every figure that the workdir has numbers for, by name."""
    drawn: dict[str, Figure] = {}
    if reading.genotype is not None:
        drawn["genotype"] = plots.genotype_of(reading.genotype, reading.candidates)
    if reading.results.models:
        drawn["comparison"] = plots.comparison(reading.results)
        drawn |= _costs(charts.accuracy_cost(priced(reading), reading.metric))
    if reading.front is not None and reading.front.points:
        drawn["pareto"] = plots.pareto(reading.front)
    if reading.trajectory is not None:
        drawn["trajectories"] = plots.weights(
            reading.trajectory.steps,
            reading.trajectory.weights,
            reading.candidates,
            reading.settings.granularity,
        )
    drawn |= _curves(reading)
    if reading.profile is not None:
        layers = charts.layers(reading.profile)
        if layers is not None:
            chosen = {"measure": charts.COSTS["flops"]}
            drawn["cost_per_layer"] = alone(layers, chosen, width=180, panels="model")
    if reading.attention is not None:
        for number, example in enumerate(reading.attention.examples):
            drawn[f"attention_{number}"] = plots.attention_maps(reading.attention, example)
    return drawn


def _costs(chart: Chart | None) -> dict[str, Figure]:
    """Score over each of the costs."""
    if chart is None:
        return {}
    drawn = {}
    (choice,) = chart.choices
    for measure in choice.options:
        # The name of a file: "latency, ms" is "latency".
        quantity = measure.split(",")[0].replace(" ", "_").replace("'", "")
        drawn[f"cost_{quantity}"] = alone(chart, {"measure": measure})
    return drawn


def _curves(reading: Reading) -> dict[str, Figure]:
    """The training loss and the score on valid over steps."""
    chart = charts.curves(trained_curves(reading))
    if chart is None:
        return {}
    drawn = {}
    (choice,) = chart.choices
    # Not every number that has a curve: these two are what a paper shows.
    for field in ("loss", f"valid_{reading.metric.name}"):
        number = charts.FIELDS[field]
        if number in choice.options:
            drawn[field] = alone(chart, {"number": number})
    return drawn


def placement_figures(path: str | Path) -> dict[str, Figure]:
    """Every figure of a placement in a checkpoint, by name."""
    drawn = {}
    for name, chart in placement.figures(placement.read(path)).items():
        (choice,) = chart.choices
        drawn[name] = alone(chart, {choice.column: choice.options[0]}, width=640)
    return drawn


def save(path: str | Path, kind: str) -> list[Path]:
    """Write every figure of a workdir to its folder `figures/`; text in them stays text."""
    if kind not in KINDS:
        raise unknown("--figures", kind, KINDS)
    folder = Path(path) / "figures"
    # Before the folder is made: it may be no workdir.
    if is_placement(path):
        drawn = placement_figures(path)
    else:
        drawn = figures(read(path))
    folder.mkdir(exist_ok=True)
    files = []
    for name, figure in drawn.items():
        file = folder / f"{name}.{kind}"
        figure.save(file)
        files.append(file)
    return files
