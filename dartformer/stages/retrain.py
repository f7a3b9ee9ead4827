"""Retrain: a genotype from scratch, once for each seed, on all of train; and the baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dartformer.attention import to_text
from dartformer.config import Config
from dartformer.data.batches import batches
from dartformer.errors import InputError
from dartformer.machine.identity import Identity, require_same
from dartformer.machine.progress import say
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Weights
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
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

MOST_DRAWS = 64
"""Draws of a random genotype that must not be the derived one: all fail once in 2^64 times."""


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

    Each seed gives its own initial weights and order of examples. The weights kept are the last
    ones, or those that are best on valid, as `retrain.select` says. `name` is the genotype's in
    progress lines.
    """
    workdir.name_training(genotype, name)
    if name == FOUND:
        workdir.link_found(genotype)
    models, seconds, compile_seconds = [], 0.0, 0.0
    for seed in study.config.retrain.seeds:
        fitted = _fit(study, workdir, genotype, name, seed)
        models.append(_selected(study, workdir, genotype, seed, fitted))
        seconds += fitted.seconds
        # Seeds share the compiled step, and each reports all of its seconds.
        compile_seconds = max(compile_seconds, fitted.compile_seconds)
    folder = training_folder(genotype)
    workdir.record_seconds({folder: seconds, f"{folder}.compile": compile_seconds})
    return models


def _fit(
    study: Study, workdir: Workdir, genotype: Genotype, name: str, seed: int
) -> Fitted[TrainState]:
    config, data = study.config.retrain, study.config.data
    net, chain, step, evaluator = study.program(genotype)

    def evaluate(state: TrainState) -> dict[str, float]:
        return evaluator(state.weights, study.parts["valid"])

    return fit(
        f"{name} seed {seed}",
        step,
        begin(net, chain, seed),
        batches(study.parts["train"], data.batch_size, seed, data.buckets),
        study.schedule(config.steps),
        workdir.training(genotype, seed),
        evaluate=evaluate,
        rates={"rate": optimizer.schedule(config.optimizer, config.steps)},
        metric=study.metric,
        identity=study.training_identity(genotype),
    )


def _selected(
    study: Study, workdir: Workdir, genotype: Genotype, seed: int, fitted: Fitted[TrainState]
) -> Model:
    """The last weights, or those that are best on valid."""
    state, valid = fitted.state, fitted.evaluations[-1]
    if study.config.retrain.select == "best":
        net, chain, _, _ = study.program(genotype)
        with Checkpoints(_checkpoints(workdir, genotype, seed)) as checkpoints:
            best = checkpoints.best(begin(net, chain, seed))
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
        if not (checkpoints / "steps" / str(steps)).exists():
            raise InputError(
                f"{genotype} is not trained to step {steps} with seed {seed} in {workdir.path}: "
                f"run `dartformer retrain` first."
            )
        with Checkpoints(checkpoints) as opened:
            saved = opened.identity()
        where = workdir.training(genotype, seed)
        remedy = f"Delete {where} and run `dartformer retrain`."
        require_same(saved, study.training_identity(genotype), f"the training in {where}", remedy)


# Baselines.


def baseline_genotypes(
    config: Config, space: SearchSpace, derived: Genotype
) -> dict[str, Genotype]:
    """Names and genotypes of the baselines that the config selects.

    They are `homogeneous.<text>` for every candidate, `random`, and `uniform_mixing`, which is all
    candidates side by side. The random genotype is drawn from the space by the config's seed, again
    until it differs from the found one where the space has another.
    """
    named = {}
    if config.baselines.homogeneous:
        for genotype in space.homogeneous():
            named[f"homogeneous.{to_text(genotype.layers[0][0])}"] = genotype
    if config.baselines.random:
        named["random"] = _random_genotype(space, derived, config.seed)
    if config.baselines.uniform:
        named["uniform_mixing"] = space.mixed()
    return named


def _random_genotype(space: SearchSpace, derived: Genotype, seed: int) -> Genotype:
    """A genotype of the space other than the derived one."""
    rng = np.random.default_rng(seed)
    drawn = space.random(rng)
    # A space has two genotypes at least, so half of the draws or more are another one.
    for _ in range(MOST_DRAWS):
        if drawn != derived:
            break
        drawn = space.random(rng)
    return drawn


def retrain_baselines(
    study: Study, workdir: Workdir, models: Sequence[Model]
) -> dict[str, list[Model]]:
    """The baselines, trained as the found genotype was.

    One that is the found genotype, or another baseline's, is not trained twice.
    """
    genotype = models[0].genotype
    # By genotype, with the found one first: small spaces name the same genotype several times.
    trained: dict[Genotype, list[Model]] = {genotype: list(models)}
    named = {}
    for name, baseline in baseline_genotypes(study.config, study.space, genotype).items():
        if baseline in trained:
            say(f"baseline {name}: the same genotype is already trained")
        else:
            trained[baseline] = retrain(study, workdir, baseline, name)
        named[name] = trained[baseline]
    return named


def best(models: Sequence[Model]) -> Model:
    """The model that is best on valid by the task's metric, of equals the first."""
    metric = find(models[0].task.traits.metric)
    return max(models, key=lambda model: metric.objective(model.valid))


def scores_by_seed(models: Sequence[Model]) -> list[Mapping[str, Any]]:
    """Each seed's scores on valid, with its number."""
    return [{"seed": model.seed, **model.valid} for model in models]
