"""Tracking: what a run came to, for TensorBoard and the trackers of `log.trackers`."""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dartformer import config as configs
from dartformer.report import plots
from dartformer.space.genotype import Genotype
from dartformer.stages.study import Run
from dartformer.training import trackers


def track(run: Run, results: dict[str, Any]) -> None:
    """The config, the scores of the found genotype and of each baseline, and the genotype's
    picture."""
    metric = run.metric.name
    scores = {
        f"test_{metric}": results["test"][metric],
        f"valid_{metric}": results["valid"][metric],
        "parameters": float(results["parameters"]),
        "flops": float(results["flops"]),
    }
    scores.update(
        {
            f"baseline_{name.split('.')[0]}_{i}_test_{metric}": baseline["test"][metric]
            for i, (name, baseline) in enumerate(results["baselines"].items())
        }
    )
    figure = plots.genotype(Genotype.from_dict(results["genotype"]), run.config.space.candidates)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    for one in trackers.start(run.config.log.trackers, run.file("summary"), str(run.workdir.path)):
        try:
            one.summary(dict(_flat(configs.to_dict(run.config))), scores)
            one.image("genotype", np.ascontiguousarray(pixels))
        finally:
            one.close()


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        pair
        for name, value in config.items()
        for pair in (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else [(f"{prefix}{name}", value)]
        )
    ]
