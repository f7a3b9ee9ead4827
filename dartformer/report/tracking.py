"""The result of a run, for TensorBoard and the trackers of `log.trackers`."""

from collections.abc import Mapping

from dartformer import config as configs
from dartformer.report import plots
from dartformer.results import Results, finite
from dartformer.stages.layout import Layout
from dartformer.stages.study import Study
from dartformer.training import trackers


def track(study: Study, layout: Layout, results: Results) -> None:
    """The config, the scores of the found model and of each baseline, and the genotype's picture."""
    if results.found is None or results.genotype is None:
        return
    values = scores(results)
    picture = plots.genotype_of(results.genotype.layers, study.config.space.candidates).pixels()
    # They leave the machine: services file them under the workdir's own name.
    settings = dict(flat(configs.without_places(configs.to_dict(study.config))))
    name = layout.path.name
    for tracker in trackers.start(study.config.log.trackers, layout.summary, name):
        try:
            tracker.summary(settings, values)
            tracker.image("genotype", picture)
        finally:
            tracker.close()


def scores(results: Results) -> dict[str, float]:
    """What is compared between runs, by name."""
    model, metric = results.found, results.measure
    if model is None:
        return {}
    values = {
        f"test_{metric}": model.test.mean,
        f"valid_{metric}": model.valid.mean,
        "parameters": float(model.parameters),
        "flops": model.flops,
    }
    for number, (name, baseline) in enumerate((results.baselines or {}).items()):
        # By number: the text of an attention holds signs that trackers do not take in a name.
        kind = name.split(".")[0]
        values[f"baseline_{kind}_{number}_test_{metric}"] = baseline.test.mean
    # Trackers plot numbers alone, and an undefined score is none.
    return {name: value for name, value in values.items() if finite(value)}


def flat(config: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """The fields of a nested config by their dotted names."""
    pairs: list[tuple[str, object]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs
