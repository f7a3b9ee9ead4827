"""The Python API: each stage on a config and a workdir. The command line calls the same
functions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dartformer import config as configs
from dartformer import cost
from dartformer.config import Config
from dartformer.cost.budget import Budget, BudgetTooSmall
from dartformer.errors import InputError
from dartformer.export import checksums
from dartformer.export import load as served_stage
from dartformer.export import write as export_stage
from dartformer.export.formats import check as check_formats
from dartformer.machine.progress import say
from dartformer.machine.workdir import Workdir, jsonable, write_json, write_text
from dartformer.report import page as report_stage
from dartformer.report import provenance, tracking
from dartformer.results import Results
from dartformer.space.genotype import Genotype
from dartformer.stages import derive as derive_stage
from dartformer.stages import evaluate as evaluate_stage
from dartformer.stages import profile as profile_stage
from dartformer.stages import retrain as retrain_stage
from dartformer.stages import search as search_stage
from dartformer.stages.retrain import Model
from dartformer.stages.search import SearchResult
from dartformer.stages.study import Run

load = served_stage.load


def search(config: Config | ConfigDict, workdir: str | Path) -> SearchResult:
    """Search, or continue where an earlier call on this workdir stopped."""
    with Run(config, workdir) as run, staged(run, "search"):
        return search_stage.search(run)


def derive(found: SearchResult) -> Genotype:
    """The genotype of a finished search; also written to `genotype.json` in its workdir."""
    with found.run.reopen() as run, staged(run, "derive"):
        return derive_stage.derive(found).genotype


def retrain(genotype: Genotype, config: Config | ConfigDict, workdir: str | Path) -> Model:
    """Train a genotype from scratch for every seed of the config; returns the model that is best on
    valid."""
    with Run(config, workdir) as run, staged(run, "retrain"):
        return retrain_stage.best(retrain_stage.retrain(run, genotype))


def evaluate(
    genotype: Genotype, config: Config | ConfigDict, workdir: str | Path
) -> dict[str, Any]:
    """Train the baselines that the config asks for, read test once, write and return
    `results.json`."""
    with Run(config, workdir) as run, staged(run, "evaluate"):
        return _evaluate(run, genotype)


@contextmanager
def staged(run: Run, verb: str) -> Iterator[None]:
    """Around a stage: note it in `provenance.json`, and refresh `report.html`, however it ends."""
    try:
        with provenance.noted(run.workdir.path, verb):
            yield
    finally:
        report_stage.refresh(run.workdir.path)


def _evaluate(run: Run, genotype: Genotype) -> dict[str, Any]:
    models = retrain_stage.retrain(run, genotype)
    results = evaluate_stage.evaluate(
        run, models, retrain_stage.retrain_baselines(run, genotype, models)
    )
    tracking.track(run, Results.from_dict(jsonable(results)))
    return results


def export(model: Model, folder: str | Path, formats: Sequence[str] = ()) -> Path:
    """Write a model as a folder that outsiders can use; `formats` beside it, see
    `dartformer.export.write`."""
    return export_stage.export(model, folder, formats=formats)


def run_all(config: Config | ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """All stages in order, resuming where an earlier call on this workdir stopped; returns
    `results.json`."""
    config = configs.build(config)
    if config.space.aspect != "given":
        return _run_shapes(config, workdir)
    with Run(config, workdir) as run:
        for verb in VERBS:
            if not finished(run, verb):
                do(run, verb)
        return run.results()


def _run_shapes(config: Config, workdir: str | Path) -> dict[str, Any]:
    """A search for each shape of the space, in `shapes/LxH`; the stages after retraining for the
    one best on valid.

    Of equals the one with fewest parameters is taken. `results.json` is the chosen shape's, with
    `shape` and `shapes`. A shape of which no genotype is within `search.budget` is left out;
    `BudgetTooSmall` where that leaves none."""
    configs.require_here(config)
    with Workdir(workdir, configs.to_dict(config)) as folder:
        found: dict[str, dict[str, Any]] = {}
        scores: dict[str, tuple[float, int]] = {}
        every = config.shapes
        dear: dict[str, str] = {}
        for name, one in every.items():
            with Run(one, folder / f"shapes/{name}") as run:
                try:
                    for verb in ("search", "derive"):
                        if not finished(run, verb):
                            do(run, verb)
                except BudgetTooSmall as error:
                    say(f"shape {name} is left out: {error}")
                    dear[name] = str(error)
                    continue
                models = do(run, "retrain")["valid"]
                genotype, share = run.genotype(), run.metric.share
                parameters = cost.model_parameters(run.program(genotype).network)
            scores[name] = sum(run.metric.objective(m) for m in models) / len(models), -parameters
            found[name] = {
                "valid": {
                    share: sum(m[share] for m in models) / len(models),
                    "per_seed": [m[share] for m in models],
                },
                "parameters": parameters,
                "genotype": genotype.to_dict(),
            }
            say(
                f"shape {name}: valid {share} {found[name]['valid'][share]:.3f}, {parameters:,} parameters"
            )
        if not scores:
            raise BudgetTooSmall(
                "; ".join(f"shape {name}: {why.rstrip('.')}" for name, why in dear.items()) + "."
            )
        chosen = max(scores, key=lambda name: scores[name])
        results = {
            **run_all(every[chosen], folder / f"shapes/{chosen}"),
            "shape": chosen,
            "shapes": found,
            **({"shapes_left_out": dear} if dear else {}),
        }
        write_text(folder / "genotype.json", Genotype.from_dict(results["genotype"]).to_json())
        write_json(folder / "results.json", results)
        return results


def do(run: Run, verb: str, **options: Any) -> dict[str, Any]:
    """What the verb returns, given its `options` (such as `formats` of export), noted and
    reported."""
    if verb == "report":
        return _report_verb(run)
    with staged(run, verb):
        return VERBS[verb](run, **options)


def finished(run: Run, verb: str) -> bool:
    """Whether a stage has left its last file, which each writes whole, at its end. Asked in the
    order of the stages: a workdir has one config, so what stands there is what would be made
    again."""
    left = {
        "search": "search/alphas.json",
        "derive": "genotype.json",
        "profile": "profile.json",
        "export": f"export/{checksums.CHECKSUMS}",
    }
    if verb == "report":
        return False  # written again whenever it is asked for: it is quick
    if verb in ("retrain", "evaluate"):
        return "verdict" in run.results()
    return run.file(left[verb]).exists()


def _finished_search(run: Run) -> SearchResult:
    found = search_stage.read(run)
    if found is None:
        raise InputError(
            f"there is no finished search in {run.workdir.path}: run `dartformer search` first."
        )
    return found


def derive_within(run: Run, budget: Budget) -> dict[str, Any]:
    """The best genotype of a finished search within a budget, and the front of accuracy against
    cost."""
    with staged(run, "derive"):
        return derive_stage.derive_within(_finished_search(run), budget)


def _derive_verb(run: Run) -> dict[str, Any]:
    genotype, ties, details = derive_stage.derive(_finished_search(run))
    return {"genotype": genotype.to_dict(), "text": str(genotype), "ties": ties, **details}


def _retrain_verb(run: Run) -> dict[str, Any]:
    models = retrain_stage.retrain(run, run.genotype())
    return {
        "genotype": models[0].genotype.to_dict(),
        "steps": run.config.retrain.steps,
        "metric": run.metric.name,
        "valid": [{"seed": m.seed, **m.valid} for m in models],
    }


def _search_verb(run: Run) -> dict[str, Any]:
    found = search_stage.search(run)
    return {
        "mixture": found.mixture.tolist(),
        "diagnostics": found.diagnostics,
        "seconds": found.seconds,
    }


def _evaluate_verb(run: Run) -> dict[str, Any]:
    genotype = run.genotype()
    retrain_stage.require_trained(run)
    return _evaluate(run, genotype)


def _profile_verb(run: Run) -> dict[str, Any]:
    return profile_stage.profile(run, run.genotype())


def _export_verb(run: Run, formats: Sequence[str] = ()) -> dict[str, Any]:
    check_formats(formats)
    genotype = run.genotype()
    retrain_stage.require_trained(run)
    model = retrain_stage.best(retrain_stage.retrain(run, genotype))
    folder = export_stage.export(model, run.file("export"), run.results(), formats)
    return {"folder": str(folder), "files": sorted(p.name for p in folder.iterdir())}


def _report_verb(run: Run) -> dict[str, Any]:
    report_stage.report(run.workdir.path)
    return {"file": str(run.file("report.html"))}


VERBS: Mapping[str, Any] = {
    "search": _search_verb,
    "derive": _derive_verb,
    "retrain": _retrain_verb,
    "evaluate": _evaluate_verb,
    "profile": _profile_verb,
    "export": _export_verb,
    "report": _report_verb,
}
"""What the command line runs: each takes a `Run`, reads what the one before left, returns plain
data."""
