"""Observe: what is measured of a search at each evaluation, beside its scores: its branches and its
curvature."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from dartformer.attention import to_text
from dartformer.models.branches import observer
from dartformer.stages.study import Run
from dartformer.strategies import State
from dartformer.strategies.curvature import dominant_eigenvalue

EXAMPLES = 16
"""How many of the alphas' data are looked at, always the same ones."""

ITERATIONS = 8
"""Of Lanczos: the dominant eigenvalue is the first to be right, and each iteration costs about
three search steps."""


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""On a CPU these halve the time to compile, of which there is more here than of running."""


def observing(run: Run) -> Callable[[State], dict[str, np.ndarray]]:
    """state -> `rms` and `gradient` `[L, K, H]` (see `Branches`), and `curvature`, a scalar, where
    it can be had."""
    config, part = run.config, run.parts["alphas"]
    loss = run.metric.mean
    strategy, net = run.supernet.strategy, run.supernet.network
    batch = part.take(np.arange(min(EXAMPLES, len(part))))
    quick = QUICK if jax.default_backend() == "cpu" else None
    look = jax.jit(
        observer(run.model, run.space, config.search.projections, loss, config.search.partial),
        compiler_options=quick,
    )
    sharp = run.strategy.traits.alphas and not once(run)

    def curvature(state: State, batch: Any) -> Array:
        def value(alphas: Array) -> Array:
            mixture = strategy.mixture(state._replace(alphas=alphas))
            return loss(
                net.apply(state.weights, batch["tokens"], batch["valid"], mixture), batch["label"]
            )

        return dominant_eigenvalue(jax.grad(value), state.alphas, jax.random.key(0), ITERATIONS)

    mixture_of, curve = jax.jit(strategy.mixture), jax.jit(curvature, compiler_options=quick)

    def observe(state: State) -> dict[str, np.ndarray]:
        seen: dict[str, Any] = look(state.weights, mixture_of(state), batch)._asdict()
        if sharp:
            seen["curvature"] = curve(state, batch)
        return {k: np.asarray(v) for k, v in seen.items()}

    return observe


def once(run: Run) -> list[str]:
    """The candidates that can be differentiated only once."""
    return [to_text(a) for a in run.space.candidates if a.traits.order < 2]
