"""Retrain: a genotype from scratch, once for each seed, on all of train; the same for the
baselines."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from dartformer.attention import to_text
from dartformer.config import Config
from dartformer.data.batches import batches
from dartformer.errors import InputError
from dartformer.machine.progress import say
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Weights
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.study import Run
from dartformer.tasks.base import Task
from dartformer.training import optimizer
from dartformer.training.checkpoint import Checkpoints
from dartformer.training.loop import Schedule, fit
from dartformer.training.metric import find
from dartformer.training.step import TrainState, begin


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


def retrain(run: Run, genotype: Genotype, folder: str = "retrain") -> list[Model]:
    """Train `genotype` from scratch for every seed of `retrain.seeds`; raises what `fit` raises.

    Each seed gives its own initial weights and order of examples. The weights kept are the last
    ones, or those that are best on valid, as `retrain.select` says."""
    config = run.config.retrain
    net, chain, step, evaluator = run.program(genotype)
    models, seconds = [], []
    for seed in config.seeds:
        where = run.file(f"{folder}/seed{seed}")

        def evaluate(state: TrainState) -> dict[str, float]:
            return evaluator(state.weights, run.parts["valid"])

        fitted = fit(
            f"{folder} seed {seed}",
            step,
            begin(net, chain, seed),
            batches(run.parts["train"], run.config.data.batch_size, seed, run.config.data.buckets),
            Schedule(
                config.steps,
                run.config.log.every,
                run.config.log.eval_every,
                run.config.log.checkpoint_every,
                run.config.log.trackers,
            ),
            where,
            evaluate=evaluate,
            rates={"rate": optimizer.schedule(config.optimizer, config.steps)},
            metric=run.metric,
        )
        state, valid = fitted.state, fitted.evaluations[-1]
        if config.select == "best":
            with Checkpoints(where / "checkpoints") as checkpoints:
                best = checkpoints.best(begin(net, chain, seed))
            if best is not None:
                state = best.state
                valid = next(e for e in fitted.evaluations if e["step"] == best.step)
        models.append(
            Model(
                run.config,
                run.fitted,
                run.model,
                genotype,
                state.weights,
                seed,
                int(state.step),
                valid,
            )
        )
        seconds.append((fitted.seconds, fitted.compile_seconds))
    _remember(run, folder, seconds)
    return models


def _remember(run: Run, folder: str, seconds: list[tuple[float, float]]) -> None:
    results = run.results()
    spent: dict[str, Any] = results.get("seconds", {})
    spent[folder] = sum(s for s, _ in seconds)
    spent[f"{folder}.compile"] = max(c for _, c in seconds)
    run.record(seconds=spent)


def baseline_genotypes(config: Config, space: SearchSpace, found: Genotype) -> dict[str, Genotype]:
    """Names and genotypes of the baselines the config asks for: `homogeneous.<spec>` for every
    candidate, `random`, and `uniform_mixing`, which is all candidates side by side.

    The random genotype is drawn from the space by the config's seed, again until it differs from
    the found one where the space has another."""
    named = {}
    if config.baselines.homogeneous:
        named.update({f"homogeneous.{to_text(g.layers[0][0])}": g for g in space.homogeneous()})
    if config.baselines.random:
        rng = np.random.default_rng(config.seed)
        drawn = space.random(rng)
        while drawn == found:
            drawn = space.random(rng)
        named["random"] = drawn
    if config.baselines.uniform:
        named["uniform_mixing"] = space.mixed()
    return named


def baseline_folder(name: str) -> str:
    """Where the baseline `name` is trained."""
    return f"baselines/{re.sub(r'[^A-Za-z0-9_.=-]+', '_', name).strip('_')}"


def retrain_baselines(run: Run, found: Genotype, models: list[Model]) -> dict[str, list[Model]]:
    """The baselines, trained as the found genotype was; one that *is* the found genotype is not
    trained twice."""
    done: dict[Genotype, list[Model]] = {found: models}
    named = {}
    for name, genotype in baseline_genotypes(run.config, run.space, found).items():
        if genotype in done:
            say(f"baseline {name}: the same genotype is already trained")
        else:
            done[genotype] = retrain(run, genotype, baseline_folder(name))
        named[name] = done[genotype]
    return named


def best(models: list[Model]) -> Model:
    """The model that is best on valid by the task's metric, of equals the first."""
    metric = find(models[0].task.traits.metric)
    return max(models, key=lambda model: metric.objective(model.valid))


def require_trained(run: Run, folder: str = "retrain") -> None:
    """Raise `InputError` unless every seed has been trained to the end."""
    for seed in run.config.retrain.seeds:
        if not run.file(
            f"{folder}/seed{seed}/checkpoints/steps/{run.config.retrain.steps}"
        ).exists():
            raise InputError(
                f"seed {seed} is not trained to step {run.config.retrain.steps} in "
                f"{run.workdir.path}: run `dartformer retrain` first."
            )
