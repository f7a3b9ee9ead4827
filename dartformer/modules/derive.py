"""From a search in a module to a genotype, by any rule."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dartformer import derivations, strategies
from dartformer.config.presets import strategy_defaults
from dartformer.derivations import Derived, Rule, Trained
from dartformer.errors import InputError
from dartformer.modules.search import ModuleSearch, chain_of
from dartformer.strategies.base import Batch, Weights
from dartformer.training.optimizer import Optimizer

FINE_TUNE_RATE = 0.1
"""Of the search's learning rate, falling to zero along a cosine: DARTS-PT fine-tunes so (arXiv
2108.04392)."""


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

    def fine_tune(weights: Weights, mixture: np.ndarray, steps: int, seed: int) -> Weights:
        if steps == 0:
            return weights
        options = done.settings.weights
        if isinstance(options, Optimizer):
            rate = FINE_TUNE_RATE * options.learning_rate
            options = dataclasses.replace(
                options, learning_rate=rate, schedule="cosine", warmup=0.0, final=0.0
            )
        chain = chain_of(options, steps)

        @jax.jit
        def step(
            weights: Weights, moments: optax.OptState, batch: Batch, key: jax.Array
        ) -> tuple[Weights, optax.OptState]:
            gradient, _ = jax.grad(done.functions.loss, has_aux=True)(
                weights, jnp.asarray(mixture), batch, key
            )
            updates, moments = chain.update(gradient, moments, weights)
            return optax.apply_updates(weights, updates), moments

        moments = chain.init(weights)
        stream = done.parts.weights.stream(seed)
        for number in range(steps):
            key = jax.random.fold_in(jax.random.key(seed), number)
            weights, moments = step(weights, moments, next(stream), key)
        return weights

    return fine_tune
