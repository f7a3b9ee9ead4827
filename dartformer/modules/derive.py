"""From a search in a module to a genotype, by any rule."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import optax

from dartformer import derivations, strategies
from dartformer.config.presets import strategy_defaults
from dartformer.derivations import Derived, Rule, Trained
from dartformer.errors import InputError
from dartformer.modules.search import ModuleSearch, chain_of
from dartformer.stages import programs
from dartformer.strategies.base import Weights
from dartformer.training.optimizer import Optimizer, fine_tuning
from dartformer.training.step import CompiledStep, TrainState, step_of


def derive(result: ModuleSearch, rule: str | None = None) -> Derived:
    """Apply a rule to a search: its genotype, with ties and numbers.

    Args:
      result: of the search.
      rule: its text, such as "argmax"; None for the default of the strategy. Rules that score
        genotypes do so by the loss on valid.

    Raises `InputError` for a rule that cannot follow the strategy.
    """
    options = result.searched.settings.strategy
    if rule is None:
        rule = _default_rule(options)
    chosen = by_loss(derivations.parse(rule))
    reason = derivations.refusal(chosen, options.traits)
    if reason:
        raise InputError(f"the rule {rule} does not work here because {reason}.")
    chosen.check(result.space)
    return chosen(trained_of(result))


def _default_rule(options: strategies.StrategyOptions) -> str:
    for name, cls in strategies.STRATEGIES.items():
        if cls is type(options):
            return strategy_defaults(name).rule
    return options.traits.derivations[0]


def by_loss(rule: Rule) -> Rule:
    """A rule that compares by the loss: a module of the user's has no accuracy that is known."""
    names = {field.name for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    if "metric" not in names:
        return rule
    return dataclasses.replace(rule, metric="loss")  # type: ignore[type-var]


def trained_of(result: ModuleSearch) -> Trained:
    """What a rule sees of a search."""
    done = result.searched

    def evaluate(
        weights: Weights, mixture: np.ndarray, examples: int | None
    ) -> Mapping[str, np.ndarray]:
        values, _ = done.evaluator.losses(weights, mixture, done.parts.valid, examples)
        return {"loss": values}

    return Trained(
        result.space,
        result.mixture,
        done.weights,
        evaluate,
        fine_tuner(result),
        np.random.default_rng([done.settings.seed, 1]),
        done.tie_margin,
    )


def fine_tuner(result: ModuleSearch) -> Callable[[Weights, np.ndarray, int, int], Weights]:
    """(weights, mixture, steps, seed) -> weights, trained further at a fixed mixture."""
    done = result.searched

    def program(steps: int) -> tuple[optax.GradientTransformation, CompiledStep[TrainState]]:
        options = done.settings.weights
        if isinstance(options, Optimizer):
            options = fine_tuning(options)
        chain = chain_of(options, steps)
        return chain, CompiledStep(step_of(done.functions.loss, chain))

    return programs.fine_tuner(program, done.parts.weights.stream)
