"""Retrain: a genotype from scratch, once for each seed, on all of train."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dartformer.config import Config
from dartformer.data.batches import batches
from dartformer.errors import InputError
from dartformer.machine.identity import Identity, require_same
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Weights
from dartformer.results import COMPILE, PROCESSOR
from dartformer.space.genotype import Genotype
from dartformer.stages.layout import Workdir, training_folder
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
    return _selected(study, workdir, genotype, seed, fitted)


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
    config, data = study.config.retrain, study.config.data
    program = study.program(genotype)

    def evaluate(state: TrainState) -> dict[str, float]:
        return program.evaluator(state.weights, study.parts["valid"])

    workdir.name_training(genotype, name)
    fitted = fit(
        f"{name} seed {seed}",
        program.step,
        begin(program.network, program.optimizer, seed),
        program.feed(batches(study.parts["train"], data.batch_size, seed, data.buckets)),
        replace(study.retraining, pause=pause),
        workdir.training(genotype, seed),
        evaluate=evaluate,
        rates={"rate": optimizer.schedule(config.optimizer, config.steps)},
        metric=study.metric,
        identity=study.training_identity(genotype),
        form=program.form,
    )
    folder = f"{training_folder(genotype)}/seed{seed}"
    workdir.record_seconds(
        {
            folder: fitted.seconds,
            folder + COMPILE: fitted.compile_seconds,
            folder + PROCESSOR: fitted.processor_seconds,
        }
    )
    return fitted


def _selected(
    study: Study, workdir: Workdir, genotype: Genotype, seed: int, fitted: Fitted[TrainState]
) -> Model:
    """The last weights, or those that are best on valid."""
    state, valid = fitted.state, fitted.evaluations[-1]
    if study.config.retrain.select == "best":
        program = study.program(genotype)
        with Checkpoints(_checkpoints(workdir, genotype, seed)) as checkpoints:
            best = checkpoints.best(begin(program.network, program.optimizer, seed))
        if best is not None:
            # The scores have to be of the same weights as the model.
            state = best.state
            valid = next(line for line in fitted.evaluations if line["step"] == best.step)
    return Model(
        study.config,
        study.fitted,
        study.model,
        genotype,
        state.weights,
        seed,
        int(state.step),
        valid,
        study.training_identity(genotype),
    )


def _checkpoints(workdir: Workdir, genotype: Genotype, seed: int) -> Path:
    return workdir.training(genotype, seed) / "checkpoints"


def require_trained(study: Study, workdir: Workdir, genotype: Genotype) -> None:
    """Raise `InputError` unless every seed has been trained to the end from this genotype."""
    steps = study.config.retrain.steps
    for seed in study.config.retrain.seeds:
        checkpoints = _checkpoints(workdir, genotype, seed)
        saved: Identity = {}
        evaluations: list[dict[str, Any]] = []
        if checkpoints.exists():
            with Checkpoints(checkpoints) as opened:
                saved = opened.identity()
                evaluations = opened.extra().get("evaluations", [])
        is_whole = (checkpoints / "steps" / str(steps)).exists()
        if not is_whole and not study.retraining.ended_early(evaluations, study.metric):
            raise InputError(
                f"{genotype} is not trained to step {steps} with seed {seed} in {workdir.path}: "
                f"run `dartformer retrain` first."
            )
        where = workdir.training(genotype, seed)
        remedy = f"Delete {where} and run `dartformer retrain`."
        require_same(saved, study.training_identity(genotype), f"the training in {where}", remedy)


def best(models: Sequence[Model]) -> Model:
    """The model that is best on valid by the metric that decides, of equals the first."""
    task, name = models[0].task, models[0].config.metric
    metric = find(name or task.traits.metric)
    return max(models, key=lambda model: metric.objective(model.valid))


def scores_by_seed(models: Sequence[Model]) -> list[Mapping[str, Any]]:
    """Each seed's scores on valid, with its number."""
    return [{"seed": model.seed, **model.valid} for model in models]
