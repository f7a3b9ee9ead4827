"""The Python API: each stage on a config and a workdir. The command line calls the same functions."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

from flax import nnx
from ml_collections import ConfigDict

from dartformer import config as configs
from dartformer import cost
from dartformer.config import Config, PlacementConfig
from dartformer.cost.budget import Budget, BudgetTooSmall
from dartformer.errors import InputError, brief
from dartformer.export import checksums
from dartformer.export import load as load_stage
from dartformer.export import write as export_stage
from dartformer.export.formats import check as check_formats
from dartformer.machine import hosts, progress
from dartformer.machine.identity import different
from dartformer.machine.progress import say
from dartformer.machine.record import Record
from dartformer.machine.workdir import UnreadableFile, write_text
from dartformer.modules import derive as modules_derive
from dartformer.modules import race as modules_race
from dartformer.modules import search as modules_search
from dartformer.modules.data import Batches
from dartformer.modules.functions import UserLoss
from dartformer.modules.race import MakeModel, ModuleRace
from dartformer.modules.search import ModuleSearch
from dartformer.modules.shown import Shown
from dartformer.placement import choose as choose_stage
from dartformer.placement import evaluate as placement_stage
from dartformer.placement import exchange as exchange_stage
from dartformer.placement import score as score_stage
from dartformer.placement import tune as tune_stage
from dartformer.placement.records import PlacementBudgetAnswer, PlacementResults
from dartformer.placement.study import (
    PlacementFolder,
    PlacementStudy,
    PlacementWorkdir,
    limit_of,
)
from dartformer.pretrained import Saved, save_pretrained
from dartformer.report import module as module_page
from dartformer.report import page as report_stage
from dartformer.report import placement as placement_page
from dartformer.report import probes as probes_page
from dartformer.report import provenance, tracking
from dartformer.results import (
    AttentionMaps,
    BudgetAnswer,
    ExampleScores,
    GenotypeRecord,
    Profile,
    RaceRecord,
    Results,
    Shape,
    ValidScores,
)
from dartformer.space.genotype import Genotype
from dartformer.stages import derive as derive_stage
from dartformer.stages import evaluate as evaluate_stage
from dartformer.stages import probe as probe_stage
from dartformer.stages import profile as profile_stage
from dartformer.stages import race as race_stage
from dartformer.stages import retrain as retrain_stage
from dartformer.stages import search as search_stage
from dartformer.stages.bracket import ANSWER
from dartformer.stages.layout import Workdir
from dartformer.stages.plan import plan
from dartformer.stages.race import Outcome, Trainer
from dartformer.stages.retrain import Model
from dartformer.stages.search import SearchResult
from dartformer.stages.study import Study
from dartformer.statistics import mean
from dartformer.training.callbacks import Callback, calling
from dartformer.training.checkpoint import damage
from dartformer.training.metric import decimals

load = load_stage.load

R = TypeVar("R", bound=Record)

# Pages are made above `modules`, whose results know them by this alone.
Shown.display = module_page

Plain = dict[str, Any]
"""Data of JSON: what a stage leaves in its file, or a verb prints with --json."""


class Session(NamedTuple):
    """A study with its workdir open."""

    study: Study
    workdir: Workdir


@contextmanager
def opened(config: Config | ConfigDict, workdir: str | Path) -> Iterator[Session]:
    """The study of a config, with its workdir open."""
    study = Study(config)
    with Workdir(workdir, config) as folder:
        if hosts.together():
            _require_one_input(study)
        yield Session(study, folder)


def _require_one_input(study: Study) -> None:
    """Raise `InputError` where processes of one run have read different data."""
    hosts.require_same(
        "what is searched",
        json.dumps(study.search_identity),
        "All processes need the same files and the same version of the package.",
    )


@contextmanager
def staged(session: Session, verb: str, where: str = "") -> Iterator[None]:
    """Around a stage: note it in `provenance.json`, and refresh `report.html`, however it ends.

    `where` it runs, if not on the devices of this process."""
    path = session.workdir.path
    try:
        with provenance.noted(path, verb, where):
            yield
    # After the note, which the page shows: of a stage that failed, why.
    finally:
        hosts.chief_alone(lambda: report_stage.refresh(path))


# What a notebook calls.


@overload
def search(
    config: Config | ConfigDict,
    workdir: str | Path,
    *,
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
) -> SearchResult: ...


@overload
def search(
    model: nnx.Module, loss: UserLoss, data: Mapping[str, Batches], **options: Any
) -> ModuleSearch: ...


def search(*arguments: Any, **options: Any) -> SearchResult | ModuleSearch:
    """Search by a config in a workdir, or in your own module.

    `search(config, workdir)` runs the stage of that name, or continues where an earlier call on
    this workdir stopped. `search(model, loss, data, ...)` searches in any module that holds
    `df.nn.MixedAttention` layers, see `dartformer.modules.search.search`. Both call `on_step` and
    `on_evaluation` with a `Moment`; False stops, see `dartformer.training.callbacks`.
    """
    first = next(iter(arguments), options.get("model", options.get("config")))
    if isinstance(first, nnx.Module):
        return modules_search.search(*arguments, **options)
    if not isinstance(first, (Config, ConfigDict)):
        raise InputError(
            f"search takes a config and a workdir, or a flax NNX module, a loss and data; got "
            f"{brief(first)} first."
        )
    return _search(*arguments, **options)


def _search(
    config: Config | ConfigDict,
    workdir: str | Path,
    *,
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
) -> SearchResult:
    with (
        calling(on_step, on_evaluation),
        opened(config, workdir) as session,
        staged(session, "search"),
    ):
        return search_stage.search(*session)


def derive(result: SearchResult | ModuleSearch, rule: str | None = None) -> Genotype:
    """The genotype of a finished search; also written to `genotype.json` in its workdir.

    Args:
      result: of a search.
      rule: of a search in your own module: a derivation, such as "argmax"; None for the default of
        the strategy. A config names its own.
    """
    if isinstance(result, ModuleSearch):
        genotype = modules_derive.derive(result, rule).genotype
        if result.path is not None:
            write_text(result.path / "genotype.json", genotype.to_json())
        return genotype
    if rule is not None:
        raise InputError("the rule of a config's search is derive.rule. Set it there.")
    with Workdir(result.path, result.config) as workdir:
        session = Session(result.study, workdir)
        with staged(session, "derive"):
            return derive_stage.derive(result, workdir).genotype


@overload
def race(config: Config | ConfigDict, workdir: str | Path) -> Genotype: ...


@overload
def race(result: ModuleSearch, make_model: MakeModel, **options: Any) -> ModuleRace: ...


def race(*arguments: Any, **options: Any) -> Genotype | ModuleRace:
    """Race what was derived against its rivals.

    `race(config, workdir)` returns the winner's genotype, which is also in `genotype.json`.
    `race(result, make_model, ...)` races your own modules after a search in one of them, see
    `dartformer.modules.race.race`.
    """
    first = next(iter(arguments), options.get("result", options.get("config")))
    if isinstance(first, ModuleSearch):
        return modules_race.race(*arguments, **options)
    if not isinstance(first, (Config, ConfigDict)):
        raise InputError(
            f"race takes a config and a workdir, or what df.search found in a module and a function "
            f"that makes modules; got {brief(first)} first."
        )
    return _race_of_config(*arguments, **options)


def _race_of_config(config: Config | ConfigDict, workdir: str | Path) -> Genotype:
    with opened(config, workdir) as session, staged(session, "race"):
        return _race(session).genotype


def retrain(
    genotype: Genotype,
    config: Config | ConfigDict,
    workdir: str | Path,
    *,
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
) -> Model:
    """Train a genotype from scratch for every seed; returns the model that is best on valid.

    `on_step` and `on_evaluation` are those of `search`."""
    with (
        calling(on_step, on_evaluation),
        opened(config, workdir) as session,
        staged(session, "retrain"),
    ):
        return retrain_stage.best(retrain_stage.retrain(*session, genotype))


def evaluate(genotype: Genotype, config: Config | ConfigDict, workdir: str | Path) -> Plain:
    """Train the baselines that the config selects, read test once, and return `results.json`."""
    with opened(config, workdir) as session, staged(session, "evaluate"):
        return _evaluate(session, genotype).to_dict()


def export(model: Model, folder: str | Path, formats: Sequence[str] = ()) -> Path:
    """Write a model as a folder that outsiders can use.

    `formats` are written beside it, see `dartformer.export.write`.
    """
    return export_stage.export(model, folder, formats=formats)


def run_all(
    config: Config | ConfigDict,
    workdir: str | Path,
    *,
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
) -> Plain:
    """All stages in order, resuming where an earlier call on this workdir stopped.

    `on_step` and `on_evaluation` are those of `search`. Returns `results.json`.
    """
    with calling(on_step, on_evaluation):
        return _run_all(config, workdir).to_dict()


def place(config: PlacementConfig | ConfigDict, workdir: str | Path) -> PlacementResults:
    """Which layers or KV groups of a checkpoint keep full attention, and how well.

    Nothing is trained, unless `config.tune.steps` says that the choice is tuned. Goes on where an
    earlier call on this workdir stopped. Returns `results.json`.

    Args:
      config: of `checkpoint_defaults`.
      workdir: the folder for all results.
    """
    study = PlacementStudy(configs.build_placement(config))
    study.check()
    with PlacementWorkdir(workdir, study.config) as folder, _placing(folder, "run"):
        scores = score_stage.score(study, folder)
        kept = exchange_stage.exchange(study, folder, scores)
        choose_stage.derive(study, folder, kept)
        tune_stage.tune(study, folder, scores, kept)
        return placement_stage.evaluate(study, folder, scores, kept)


def evaluate_placement(
    config: PlacementConfig | ConfigDict, workdir: str | Path
) -> PlacementResults:
    """The exact quality of a placement and its rivals, whose places are scored already."""
    study = PlacementStudy(configs.build_placement(config))
    study.check()
    with PlacementWorkdir(workdir, study.config) as folder, _placing(folder, "evaluate"):
        scores = score_stage.require_scores(study, folder)
        kept = exchange_stage.exchange(study, folder, scores)
        choose_stage.derive(study, folder, kept)
        tune_stage.keep(study, folder)
        return placement_stage.evaluate(study, folder, scores, kept)


def derive_placement(workdir: str | Path, budget: Budget | None = None) -> PlacementBudgetAnswer:
    """Which places of a scored checkpoint to keep within a budget; None: that of the config."""
    study = PlacementStudy(PlacementFolder(workdir).read_config())
    limit = study.limit
    if budget is not None:
        limit = limit_of(budget, study.places)
    with PlacementWorkdir(workdir, study.config) as folder, _placing(folder, "derive"):
        scores = score_stage.require_scores(study, folder)
        improved = None
        if limit == study.limit:
            improved = exchange_stage.finished(study, folder, scores)
        return choose_stage.derive_within(study, folder, scores, limit, improved)


def export_placement(workdir: str | Path) -> Saved:
    """Write a checkpoint with the attentions that were derived to the workdir's `export`."""
    config = PlacementFolder(workdir).read_config()
    with PlacementWorkdir(workdir, config) as folder, _placing(folder, "export"):
        say("export: writing the checkpoint to export/")
        return save_pretrained(placement_stage.placed_model(workdir), folder.path / "export")


@contextmanager
def _placing(folder: PlacementWorkdir, verb: str) -> Iterator[None]:
    """Around a stage of a placement, as `staged` is around others."""
    try:
        with provenance.noted(folder.path, verb):
            yield
    finally:
        report_stage.refresh(folder.path, placement_page.report)


def probe(
    config: Config | ConfigDict,
    workdir: str | Path,
    genotypes: Mapping[str, Genotype] | None = None,
    *,
    probes: Sequence[str] = probe_stage.PROBES,
    size: str = "small",
    rates: Sequence[float] = (),
    lengths: Sequence[int] = (),
) -> probe_stage.Probed:
    """Train genotypes on small tasks that each need one ability, see `dartformer.stages.probe`.

    Writes `probes.json` and `probes.html`; what is trained already is not trained again.
    """
    probed = probe_stage.probe(
        configs.build(config),
        workdir,
        genotypes,
        probes=probes,
        size=size,
        rates=rates,
        lengths=lengths,
    )
    probes_page.write(probed, Path(workdir) / probes_page.FILE)
    return probed


def _run_all(config: Config | ConfigDict, workdir: str | Path) -> Results:
    config = configs.build(config)
    if config.space.aspect != "given":
        return _run_shapes(config, workdir)
    with opened(config, workdir) as session:
        planned = plan(session.study, tuple(VERBS))
        say(planned.sentence)
        # One session for all stages: data and programs are made once.
        with progress.whole(planned.whole):
            for verb in VERBS:
                planned.whole.enter(verb)
                if not finished(session, verb):
                    do(session, verb)
        return session.workdir.read_results()


def _evaluate(session: Session, genotype: Genotype) -> Results:
    study, workdir = session
    outcome = race_stage.read(study, workdir, genotype)
    if outcome is None:
        # Nothing chose this genotype among the others, so it is judged and may not be replaced.
        outcome = race_stage.race(study, workdir, {ANSWER: genotype}, decides=False)
    results = evaluate_stage.evaluate(study, workdir, outcome)
    hosts.chief_alone(lambda: tracking.track(study, workdir, results))
    return results


# Several shapes.


def _run_shapes(config: Config, workdir: str | Path) -> Results:
    """A search for each shape of the space; the later stages for the one best on valid.

    Of equals the one with fewest parameters is taken. `results.json` is the chosen shape's, with
    `shape` and `shapes`. A shape of which no genotype is within `search.budget` is left out;
    raises `BudgetTooSmall` where that leaves none.
    """
    configs.require_here(config)
    with Workdir(workdir, config) as folder:
        shapes: dict[str, Shape] = {}
        merits: dict[str, tuple[float, int]] = {}
        left_out: dict[str, str] = {}
        of_shapes = config.shapes
        for name, shape_config in of_shapes.items():
            with opened(shape_config, folder.shape(name)) as session:
                try:
                    shape, merits[name] = _search_shape(session)
                except BudgetTooSmall as error:
                    say(f"shape {name} is left out: {error}")
                    left_out[name] = str(error)
                    continue
            shapes[name] = shape
            say(
                f"shape {name}: valid {shape.valid.metric} {decimals(shape.valid.mean)}, "
                f"{shape.parameters:,} parameters"
            )
        if not merits:
            reasons = []
            for name, why in left_out.items():
                reasons.append(f"shape {name}: {why.rstrip('.')}")
            raise BudgetTooSmall("; ".join(reasons) + ".")
        # The stages that the chosen shape has behind it are not repeated.
        chosen = max(merits, key=merits.__getitem__)
        results = dataclasses.replace(
            _run_all(of_shapes[chosen], folder.shape(chosen)),
            shape=chosen,
            shapes=shapes,
            shapes_left_out=left_out or None,
        )
        assert results.genotype is not None
        folder.write_genotype(Genotype.from_dict(results.genotype.to_dict()))
        folder.write(folder.results, results)
        return results


def _search_shape(session: Session) -> tuple[Shape, tuple[float, int]]:
    """Search, derive and retrain one shape: its scores, and what the best shape has most of."""
    study, workdir = session
    for verb in ("search", "derive"):
        if not finished(session, verb):
            do(session, verb)
    genotype = workdir.read_genotype()
    with staged(session, "retrain"):
        models = retrain_stage.retrain(study, workdir, genotype)
    share = study.metric.share
    per_seed = tuple(model.valid[share] for model in models)
    shape = Shape(
        ValidScores(share, mean(per_seed), per_seed),
        cost.model_parameters(study.program(genotype).network),
        GenotypeRecord.from_dict(genotype.to_dict()),
    )
    objectives = [study.metric.objective(model.valid) for model in models]
    objective = mean(objectives)
    # Compared in this order: of two shapes that score the same, the smaller one.
    return shape, (objective, -shape.parameters)


# The verbs of the command line.


def do(session: Session, verb: str, **options: Any) -> Plain:
    """Run a verb, noted and reported; `options` such as `formats` of export, `trainer` of race."""
    if verb == "report":
        return _report_verb(session)  # which would refresh the page twice
    with staged(session, verb, _where(options.get("trainer"))):
        return VERBS[verb](session, **options)


def derive_within(session: Session, budget: Budget) -> BudgetAnswer:
    """The best genotype of a finished search within a budget, and the front over cost."""
    with staged(session, "derive"):
        return derive_stage.derive_within(_finished_search(session), session.workdir, budget)


def finish(session: Session, names: Sequence[str], trainer: Trainer | None = None) -> RaceRecord:
    """Train entrants of a race that stopped to the end, and score them on valid."""
    with staged(session, "race", _where(trainer)):
        return race_stage.finish(*session, names, trainer)


def _where(trainer: Trainer | None) -> str:
    """Where entrants train, for the note of a race; empty for this process."""
    if trainer is None:
        return ""
    return trainer.where


def _search_verb(session: Session) -> Plain:
    result = search_stage.search(*session)
    return {
        "mixture": result.mixture.tolist(),
        "diagnostics": result.diagnostics.to_dict(),
        "seconds": result.seconds,
    }


def _finished_search(session: Session) -> SearchResult:
    result = search_stage.read(*session)
    if result is None:
        raise InputError(
            f"there is no finished search in {session.workdir.path}: run `dartformer search` first."
        )
    return result


def _derive_verb(session: Session) -> Plain:
    if not session.study.strategy.traits.supernet:
        return {"text": "nothing is derived: the race decides"}
    result = _finished_search(session)
    say("derive: choosing a genotype from the search")
    genotype, ties, details = derive_stage.derive(result, session.workdir)
    return {"genotype": genotype.to_dict(), "text": str(genotype), "ties": ties, **details}


def _race_verb(session: Session, trainer: Trainer | None = None) -> Plain:
    return _race(session, trainer).record.to_dict()


def _race(session: Session, trainer: Trainer | None = None) -> Outcome:
    study, workdir = session
    mixture = None
    if trainer is not None:
        # This process may see other devices than the entrants.
        search_stage.require_prices(study, workdir)
    if study.strategy.traits.alphas:
        mixture = _finished_search(session).mixture
    outcome = race_stage.race(study, workdir, _answers(session), mixture, trainer=trainer)
    workdir.record(genotype=GenotypeRecord.from_dict(outcome.genotype.to_dict()))
    # Last, because the later stages take the winner from this file.
    workdir.write_genotype(outcome.genotype)
    return outcome


def _answers(session: Session) -> dict[str, Genotype]:
    """What the search derived, by name; empty where nothing is searched for."""
    study, workdir = session
    if not study.strategy.traits.supernet:
        return {}
    derivation = workdir.read_results().derive
    if derivation is None or derivation.answers is None:
        raise InputError(
            f"there is no derived genotype in {workdir.path}: run `dartformer derive` first."
        )
    answers = {}
    for name, layers in derivation.answers.items():
        genotype = Genotype.from_dict(GenotypeRecord(1, layers).to_dict())
        study.require_of_space(genotype, workdir.results)
        answers[name] = genotype
    return answers


def _retrain_verb(session: Session) -> Plain:
    study, workdir = session
    models = retrain_stage.retrain(study, workdir, _genotype(session))
    return {
        "genotype": models[0].genotype.to_dict(),
        "steps": study.config.retrain.steps,
        "metric": study.metric.name,
        "valid": retrain_stage.scores_by_seed(models),
    }


def _evaluate_verb(session: Session) -> Plain:
    genotype = _genotype(session)
    retrain_stage.require_trained(*session, genotype)
    say("evaluate: scoring the finalists and simple rules on test")
    return _evaluate(session, genotype).to_dict()


def _profile_verb(session: Session) -> Plain:
    genotype = _genotype(session)
    say("profile: measuring the cost of the models on this device")
    return profile_stage.profile(*session, genotype).to_dict()


def _export_verb(
    session: Session, formats: Sequence[str] = (), entrant: str | None = None
) -> Plain:
    check_formats(formats)
    study, workdir = session
    results = workdir.read_results()
    genotype = _genotype(session)
    if entrant is not None:
        results = race_stage.with_entrant(results, entrant)
        assert results.genotype is not None
        genotype = Genotype.from_dict(results.genotype.to_dict())
    retrain_stage.require_trained(study, workdir, genotype)
    say("export: writing the model to export/")
    name = entrant or retrain_stage.FOUND
    model = retrain_stage.best(retrain_stage.retrain(study, workdir, genotype, name))

    def write() -> Plain:
        folder = export_stage.export(model, workdir.export, results, formats)
        files = sorted(file.name for file in folder.iterdir())
        return {"folder": str(folder), "files": files}

    return hosts.by_chief(write)


def _report_verb(session: Session) -> Plain:
    hosts.chief_alone(lambda: report_stage.report(session.workdir.path))
    return {"file": str(session.workdir.report)}


def _genotype(session: Session) -> Genotype:
    """The derived genotype; `InputError` where it was edited to leave the search space."""
    genotype = session.workdir.read_genotype()
    session.study.require_of_space(genotype, session.workdir.genotype)
    return genotype


Verb = Callable[..., Plain]

VERBS: Mapping[str, Verb] = {
    "search": _search_verb,
    "derive": _derive_verb,
    "race": _race_verb,
    "retrain": _retrain_verb,
    "evaluate": _evaluate_verb,
    "profile": _profile_verb,
    "export": _export_verb,
    "report": _report_verb,
}
"""What the command line runs, in order: each reads what the one before left, and returns plain
data."""


# Whether a stage is finished.


def finished(session: Session, verb: str) -> bool:
    """Whether a stage has left its last file, whole and of this study and genotype.

    Asked in the order of the stages. Raises `InputError` where the search was on other data.
    """
    return hosts.by_chief(lambda: FINISHED[verb](session))


def _search_finished(session: Session) -> bool:
    study, workdir = session
    record = workdir.read_search()
    if record is None:
        return False
    search_stage.require_of_study(study, workdir, record)
    if workdir.read_results().diagnostics is None:
        # `results.json` was deleted, and the search knows its part of it.
        search_stage.record_results(workdir, record)
    trainings = []
    for group in search_stage.groups(study):
        trainings.append(group.folder(workdir))
    return not _damaged(trainings, study.config.search.steps)


def _derive_finished(session: Session) -> bool:
    if not session.study.strategy.traits.supernet:
        return True
    workdir = session.workdir
    return workdir.genotype.exists() and workdir.read_results().genotype is not None


def _retrain_finished(session: Session) -> bool:
    if not _evaluate_finished(session):
        return False
    retraining, genotype = session.study.config.retrain, _genotype(session)
    trainings = []
    for seed in retraining.seeds:
        trainings.append(session.workdir.training(genotype, seed))
    return not _damaged(trainings, retraining.steps)


def _damaged(trainings: Sequence[Path], steps: int) -> bool:
    """Whether a training must be continued, because its last checkpoint is damaged.

    One that was deleted is not missed: what was made of it is there.
    """
    for training in trainings:
        problem = damage(training / "checkpoints", steps)
        if problem is not None:
            say(f"the checkpoint of step {steps} in {training} is damaged: {problem}.")
            return True
    return False


def _race_finished(session: Session) -> bool:
    study, workdir = session
    record = workdir.read_results().race
    if record is None or different(record.identity, race_stage.race_identity(study)):
        return False
    # A derivation that was repeated since may have another answer, which has not raced.
    raced = [entrant.genotype.layers for entrant in record.entrants]
    for answer in _answers(session).values():
        if GenotypeRecord.from_dict(answer.to_dict()).layers not in raced:
            return False
    return workdir.genotype.exists()


def _evaluate_finished(session: Session) -> bool:
    study, workdir = session
    results = workdir.read_results()
    if results.verdict is None:
        return False
    genotype = _genotype(session)
    if results.identity is None:
        # Written by version 0.1.0.
        return results.genotype == GenotypeRecord.from_dict(genotype.to_dict())
    if different(results.identity, study.training_identity(genotype)):
        return False
    scores = _intact(session, ExampleScores, workdir.test_scores)
    maps = _intact(session, AttentionMaps, workdir.attention)
    return scores is not None and maps is not None


def _intact(session: Session, record: type[R], file: Path) -> R | None:
    """The record in a file; None where its stage must write it again."""
    try:
        return session.workdir.read(record, file)
    except UnreadableFile:
        raise
    except InputError as error:
        say(f"{error} It is written again.")
        return None


def _profile_finished(session: Session) -> bool:
    study, workdir = session
    profile = _intact(session, Profile, workdir.profile)
    if profile is None:
        return False
    genotype = _genotype(session)
    if profile.identity is None:
        # Written before profiles had an identity.
        layers = GenotypeRecord.from_dict(genotype.to_dict()).layers
        return any(model.name == "found" and model.genotype == layers for model in profile.models)
    return not different(profile.identity, study.model_identity(genotype))


def _export_finished(session: Session) -> bool:
    study, workdir = session
    if not (workdir.export / checksums.CHECKSUMS).exists():
        return False
    try:
        checksums.verify(workdir.export, ("config.json", "genotype.json", "weights.safetensors"))
        header = load_stage.read_header(workdir.export)
        exported = profile_stage.read_genotype(workdir.export / "genotype.json")
    except UnreadableFile:
        raise
    except InputError as error:
        # A damaged export is not what a run stops for, as it can be written again.
        say(f"{error} It is exported again.")
        return False
    genotype = _genotype(session)
    if exported != genotype:
        return False
    return not different(header.identity or {}, study.training_identity(genotype))


def _report_finished(session: Session) -> bool:
    return False  # it is quick, so it is always written again


FINISHED: Mapping[str, Callable[[Session], bool]] = {
    "search": _search_finished,
    "derive": _derive_finished,
    "race": _race_finished,
    "retrain": _retrain_finished,
    "evaluate": _evaluate_finished,
    "profile": _profile_finished,
    "export": _export_finished,
    "report": _report_finished,
}
