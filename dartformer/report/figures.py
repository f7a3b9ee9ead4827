"""Figures: those of a report as matplotlib's, for papers and notebooks, saved as PDF, SVG or
PNG."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dartformer.errors import unknown
from dartformer.report import charts, plots
from dartformer.report import page as report
from dartformer.report.reading import Reading, read
from dartformer.stages.maps import unpack
from dartformer.training import metric

KINDS = ("pdf", "svg", "png")


def figures(found: Reading) -> dict[str, Figure]:
    """Every figure that the workdir has numbers for, by name."""
    made: dict[str, Figure] = {}
    results, shown = found.results, metric.of(found.results)
    if found.genotype:
        made["genotype"] = plots.drawing(found.genotype, found.candidates)
    if "baselines" in results:
        made["comparison"] = plots.comparison(results)
        models = report.costs(found)
        for measure in dict.fromkeys(k for m in models for k in m if k not in ("model", "score")):
            known = [m for m in models if m.get(measure) is not None]
            if len(known) > 1:
                name = "cost_" + measure.split(",")[0].replace(" ", "_").replace("'", "")
                made[name] = plots.cost(
                    [(m["model"], m[measure], m["score"]) for m in known],
                    measure,
                    shown,
                    charts.frontier([(m[measure], m["score"]) for m in known], shown.higher),
                )
    if found.pareto and found.pareto.get("points"):
        made["pareto"] = plots.pareto(found.pareto)
    if found.trajectory:
        made["trajectories"] = plots.weights(
            found.trajectory.steps,
            found.trajectory.weights,
            found.candidates,
            found.config["space"]["granularity"],
        )
    for field, label in (
        ("loss", "training loss"),
        (f"valid_{shown.name}", f"valid {shown.title}"),
    ):
        lines: dict[str, list[Any]] = {}
        for curve in found.curves:
            if curve.field == field:
                lines.setdefault(curve.model, []).append(curve.points)
        if lines:
            made[field] = plots.curves(lines, label)
    if found.profile and "layers" in found.profile["models"][0]:
        made["cost_per_layer"] = plots.layers(
            found.profile["models"], "flops", charts.COSTS["flops"]
        )
    for i, one in enumerate((found.attention or {}).get("examples", [])):
        data: Any = found.attention
        made[f"attention_{i}"] = plots.maps(
            unpack(one, len(data["layers"]), len(data["heads"])),
            one["tokens"],
            data["layers"],
            data["heads"],
        )
    return made


def save(path: str | Path, kind: str) -> list[Path]:
    """Write every figure of a workdir to its folder `figures/`; text in them stays text."""
    if kind not in KINDS:
        raise unknown("--figures", kind, KINDS)
    folder = Path(path) / "figures"
    made = figures(read(path))
    folder.mkdir(exist_ok=True)
    files = []
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "savefig.dpi": 200}):
        for name, figure in made.items():
            files.append(folder / f"{name}.{kind}")
            figure.savefig(
                files[-1],
                metadata={"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind),
                bbox_inches="tight",
            )
    return files
