"""Observe: what is measured of a search at each evaluation: its branches and its curvature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from dartformer.attention import to_text
from dartformer.models.branches import observer
from dartformer.models.transformer import label_scores
from dartformer.stages.study import Study
from dartformer.strategies import State
from dartformer.strategies.base import Batch
from dartformer.strategies.curvature import dominant_eigenvalue
from dartformer.training.devices import gather

EXAMPLES = 16
"""How many of the alphas' data are measured, always the same ones."""

ITERATIONS = 8
"""Of Lanczos: the dominant eigenvalue is the first to be right, and each iteration costs about
three search steps."""

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""On a CPU these halve the time to compile, of which there is more here than of running."""


def quick_options() -> dict[str, Any] | None:
    """Compiler options for a program that runs a few times."""
    if jax.default_backend() == "cpu":
        return QUICK
    return None


@dataclass(frozen=True)
class Observation:
    """What branches and curvature of a state are like.

    Attributes:
      rms: of each branch's output, `[L, K, H]`; `[L, K]` as a mean over heads.
      gradient: norm of the gradient of each branch's queries and keys, shaped as `rms`; NaN
        without any weight.
      curvature: the dominant eigenvalue of d2 L/d alpha2; None where there is none.
    """

    rms: np.ndarray
    gradient: np.ndarray
    curvature: float | None

    def line(self) -> dict[str, Any]:
        """As fields of a line of `metrics.jsonl`."""
        fields: dict[str, Any] = {"branch_rms": self.rms, "branch_gradient": self.gradient}
        if self.curvature is not None:
            fields["curvature"] = self.curvature
        return fields


def observing(study: Study) -> Callable[[State], Observation]:
    """state -> its observation, compiled."""
    config, part = study.config.search, study.parts["alphas"]
    strategy, metric = study.supernet.strategy, study.metric
    batch = part.take(np.arange(min(EXAMPLES, len(part))))
    branches = observer(
        study.model,
        study.space,
        config.projections,
        metric.losses,
        metric.of_batch,
        config.partial,
    )
    branches_of = jax.jit(branches, compiler_options=quick_options())
    # The curvature differentiates a gradient, which not every attention allows.
    twice = study.strategy.traits.alphas and not first_order_only(study)
    mixture_of = jax.jit(strategy.mixture)
    curvature_of = jax.jit(curvature(study), compiler_options=quick_options())

    def observe(state: State) -> Observation:
        measured = branches_of(state.weights, mixture_of(state), batch)
        rms, gradient = gather((measured.rms, measured.gradient))
        if not twice:
            return Observation(rms, gradient, None)
        return Observation(rms, gradient, float(curvature_of(state, batch)))

    return observe


def curvature(study: Study) -> Callable[[State, Batch], Array]:
    """(state, batch) -> the dominant eigenvalue of d2 L/d alpha2."""
    strategy, net = study.supernet.strategy, study.network_of_order(2)

    def eigenvalue(state: State, batch: Batch) -> Array:
        def value(alphas: Array) -> Array:
            mixture = strategy.mixture(state._replace(alphas=alphas))
            arrays = (state.weights, batch["tokens"], batch["valid"], batch["label"], mixture)
            losses = label_scores(net, study.metric.losses, *arrays)
            return study.metric.of_batch(losses, batch["label"])

        # Always the same start vector: curvatures of two steps differ by the state alone.
        return dominant_eigenvalue(jax.grad(value), state.alphas, jax.random.key(0), ITERATIONS)

    return eigenvalue


def mean_over_seeds(observations: Sequence[Observation]) -> Observation:
    """Means over seeds and heads: `[L, K]` for branches (NaN without any weight)."""
    rms_by_seed, gradients, curvatures = [], [], []
    for observation in observations:
        rms_by_seed.append(observation.rms)
        gradients.append(observation.gradient)
        if observation.curvature is not None:
            curvatures.append(observation.curvature)
    # [S, L, K, H] -> [L, K]. A dropped branch has no gradient (NaN), and counts for no seed and
    # head: `nanmean` would do the same with a warning where none is left.
    gradient = np.stack(gradients)
    alive = np.isfinite(gradient)
    count = alive.sum((0, -1))
    total = np.where(alive, gradient, 0).sum((0, -1))
    mean_gradient = total / np.where(count, count, np.nan)
    # Squares are averaged, so that the mean is the rms of all heads' outputs taken together.
    mean_rms = np.sqrt(np.mean(np.stack(rms_by_seed) ** 2, (0, -1)))
    if not curvatures:
        return Observation(mean_rms, mean_gradient, None)
    return Observation(mean_rms, mean_gradient, float(np.mean(curvatures)))


def first_order_only(study: Study) -> list[str]:
    """The candidates that have no second derivative."""
    names = []
    for candidate in study.space.candidates:
        if candidate.traits.order < 2:
            names.append(to_text(candidate))
    return names
