"""Retrain: a genotype from scratch, once for each seed, on all of train."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dartformer.config import Config
from dartformer.data.batches import batches
from dartformer.errors import InputError
from dartformer.machine.identity import Identity, require_same
from dartformer.machine.workdir import LockedFolder
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Weights
from dartformer.results import COMPILE, PROCESSOR
from dartformer.space.genotype import Genotype
from dartformer.stages.layout import Layout, Workdir, training_folder
from dartformer.stages.study import Study
from dartformer.tasks.base import Task
from dartformer.training import optimizer
from dartformer.training.checkpoint import Checkpoints
from dartformer.training.loop import Fitted, fit
from dartformer.training.metric import find
from dartformer.training.step import TrainState, begin

FOUND = "found"
"""The found genotype in progress lines."""


@dataclass(frozen=True)
class Model:
    """A trained Transformer: all that is needed to run, evaluate or export it."""

    config: Config
    task: Task
    shape: TransformerConfig
    genotype: Genotype
    weights: Weights
    seed: int
    step: int
    valid: dict[str, float]
    identity: Identity = field(default_factory=dict)


def retrain(study: Study, workdir: Workdir, genotype: Genotype, name: str = FOUND) -> list[Model]:
    """Train `genotype` from scratch for every seed of `retrain.seeds`; raises what `fit` raises.

    `name` is the genotype's in progress lines.
    """
    if name == FOUND:
        workdir.link_found(genotype)
    return [train(study, workdir, genotype, name, seed) for seed in study.config.retrain.seeds]


def train(study: Study, workdir: Workdir, genotype: Genotype, name: str, seed: int) -> Model:
    """Train `genotype` from scratch with one seed, or go on where its training stopped.

    The seed gives the initial weights and the order of examples. The weights kept are the last
    ones, or those that are best on valid, as `retrain.select` says.
    """
    fitted = _fit(study, workdir, genotype, name, seed)
    return selected(study, workdir, genotype, seed, fitted.state, fitted.evaluations)


def train_until(
    study: Study, workdir: Workdir, genotype: Genotype, name: str, seed: int, step: int
) -> Weights:
    """The weights after `step` steps of a whole training, which can go on from there.

    Those of the last step where the training is further already.
    """
    return _fit(study, workdir, genotype, name, seed, step).state.weights


def _fit(
    study: Study,
    workdir: Workdir,
    genotype: Genotype,
    name: str,
    seed: int,
    pause: int | None = None,
) -> Fitted[TrainState]:
    workdir.name_training(genotype, name)
    with held(workdir, genotype, seed):
        fitted = fit_in_folder(study, workdir, genotype, name, seed, pause)
    workdir.record_seconds(
        _seconds(genotype, seed, fitted.seconds, fitted.compile_seconds, fitted.processor_seconds)
    )
    return fitted


def fit_in_folder(
    study: Study,
    layout: Layout,
    genotype: Genotype,
    name: str,
    seed: int,
    pause: int | None = None,
) -> Fitted[TrainState]:
    """Train with one seed, and write nothing but the folder of that training, which must be `held`.

    So it can be another process than the one that holds the workdir. Raises what `fit` raises.
    """
    config, data = study.config.retrain, study.config.data
    program = study.program(genotype)

    def evaluate(state: TrainState) -> dict[str, float]:
        return program.evaluator(state.weights, study.parts["valid"])

    drawn = batches(study.parts["train"], data.batch_size, seed, data.buckets, rows=study.rows())
    return fit(
        f"{name} seed {seed}",
        program.step,
        begin(program.network, program.optimizer, seed, study.layout()),
        program.feed(drawn),
        replace(study.retraining, pause=pause),
        layout.training(genotype, seed),
        evaluate=evaluate,
        rates={"rate": optimizer.schedule(config.optimizer, config.steps)},
        metric=study.metric,
        identity=study.training_identity(genotype),
        form=program.form,
    )


def held(layout: Layout, genotype: Genotype, seed: int) -> "contextlib.closing[LockedFolder]":
    """Hold the folder of a training; raises `InputError` where another process does."""
    return contextlib.closing(LockedFolder(layout.training(genotype, seed)))


def _seconds(
    genotype: Genotype, seed: int, seconds: float, compile_seconds: float, processor: float
) -> dict[str, float]:
    """What a training took, under its names in `results.json`."""
    folder = f"{training_folder(genotype)}/seed{seed}"
    return {folder: seconds, folder + COMPILE: compile_seconds, folder + PROCESSOR: processor}


def seconds_spent(layout: Layout, genotype: Genotype, seed: int) -> dict[str, float]:
    """What a training took up to its last checkpoint, under its names in `results.json`."""
    with Checkpoints(_checkpoints(layout, genotype, seed)) as checkpoints:
        extra = checkpoints.extra()
    seconds = extra.get("seconds", 0.0)
    processor = extra.get("processor_seconds", seconds)
    return _seconds(genotype, seed, seconds, extra.get("compile_seconds", 0.0), processor)


def read_trained(study: Study, layout: Layout, genotype: Genotype, seed: int) -> Model:
    """The model of a finished training, for which nothing is compiled; see `is_trained`.

    Raises `InputError` where its checkpoint is damaged.
    """
    network, chain = study.untrained(genotype)
    with Checkpoints(_checkpoints(layout, genotype, seed)) as checkpoints:
        last = checkpoints.latest(begin(network, chain, seed, study.layout()))
    if last is None:
        raise InputError(
            f"there is no checkpoint that can be read in {layout.training(genotype, seed)}. "
            f"Delete that folder, and run the same command again."
        )
    return selected(study, layout, genotype, seed, last.state, last.extra["evaluations"])


def selected(
    study: Study,
    layout: Layout,
    genotype: Genotype,
    seed: int,
    state: TrainState,
    evaluations: Sequence[dict[str, Any]],
) -> Model:
    """The last weights, or those that are best on valid."""
    valid = evaluations[-1]
    if study.config.retrain.select == "best":
        network, chain = study.untrained(genotype)
        with Checkpoints(_checkpoints(layout, genotype, seed)) as checkpoints:
            best = checkpoints.best(begin(network, chain, seed, study.layout()))
        if best is not None:
            # The scores have to be of the same weights as the model.
            state = best.state
            valid = next(line for line in evaluations if line["step"] == best.step)
    return Model(
        study.config,
        study.fitted,
        study.model,
        genotype,
        study.gathered(state.weights),
        seed,
        int(state.step),
        valid,
        study.training_identity(genotype),
    )


def _checkpoints(layout: Layout, genotype: Genotype, seed: int) -> Path:
    return layout.training(genotype, seed) / "checkpoints"


def is_trained(study: Study, layout: Layout, genotype: Genotype, seed: int) -> bool:
    """Whether one seed has been trained to the end, or to where patience ended it.

    Raises `InputError` where the training is of another study.
    """
    checkpoints = _checkpoints(layout, genotype, seed)
    if not checkpoints.exists():
        return False
    with Checkpoints(checkpoints) as opened:
        saved = opened.identity()
        evaluations = opened.extra().get("evaluations", [])
    is_whole = (checkpoints / "steps" / str(study.config.retrain.steps)).exists()
    if not is_whole and not study.retraining.ended_early(evaluations, study.metric):
        return False
    where = layout.training(genotype, seed)
    remedy = f"Delete {where} and run `dartformer retrain`."
    require_same(saved, study.training_identity(genotype), f"the training in {where}", remedy)
    return True


def require_trained(study: Study, workdir: Workdir, genotype: Genotype) -> None:
    """Raise `InputError` unless every seed has been trained to the end from this genotype."""
    for seed in study.config.retrain.seeds:
        if not is_trained(study, workdir, genotype, seed):
            raise InputError(
                f"{genotype} is not trained to step {study.config.retrain.steps} with seed {seed} "
                f"in {workdir.path}: run `dartformer retrain` first."
            )


def best(models: Sequence[Model]) -> Model:
    """The model that is best on valid by the metric that decides, of equals the first."""
    task, name = models[0].task, models[0].config.metric
    metric = find(name or task.traits.metric)
    return max(models, key=lambda model: metric.objective(model.valid))


def scores_by_seed(models: Sequence[Model]) -> list[Mapping[str, Any]]:
    """Each seed's scores on valid, with its number."""
    return [{"seed": model.seed, **model.valid} for model in models]
