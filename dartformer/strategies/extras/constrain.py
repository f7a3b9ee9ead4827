"""A budget as a constraint of the alphas' problem: an augmented Lagrangian with dual ascent.

    min_a L(a)    with    r_m(a) = expected cost / limit <= 1    for every limit m

    loss:         L + sum_m (max(0, u_m + c g_m)^2 - u_m^2) / 2c,    g = r - 1,    where r_m > floor
    multipliers:  u_m <- max(0, u_m + rate g_m)

(Bertsekas 1982, "Constrained optimization and Lagrange multiplier methods", section 3.1, for
inequalities.) A weight chosen beforehand either does nothing or drives every place to the cheapest
candidate, while the multiplier settles where the limit is just met. It lags behind the alphas and
would push them below the limit for a while. The floor prevents that: there is no pressure below
that share of the budget.
"""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.strategies.base import Constraint, Metrics

CURVATURE = 1.0
"""c: the pressure per unit of g, before any multiplier has grown."""

NAME = "multipliers"
"""In a state's memory."""


def start(constraint: Constraint | None) -> dict[str, Array]:
    """The multipliers before the first step, for a state's memory."""
    if constraint is None:
        return {}
    return {NAME: jnp.zeros(len(constraint.names))}


def pressure(
    constraint: Constraint | None, mixture: Array, memory: dict[str, Array]
) -> Array | float:
    """The budget's term in the alphas' loss, at the soft mixture `[L, H, K]`."""
    if constraint is None:
        return 0.0
    ratios = constraint.ratios(mixture)
    # The alphas descend at fixed multipliers; `ascend` moves those.
    multipliers = jax.lax.stop_gradient(memory[NAME])
    raised = jnp.maximum(0, multipliers + CURVATURE * (ratios - 1))
    terms = (raised**2 - multipliers**2) / (2 * CURVATURE)
    return jnp.sum(jnp.where(ratios > constraint.floor, terms, 0))


def ascend(
    constraint: Constraint | None, mixture: Array, memory: dict[str, Array], active: Array
) -> tuple[dict[str, Array], Metrics]:
    """A step of dual ascent, where the alphas are `active`.

    Returns the memory with the new multipliers, and to log: cost over limit, and multipliers."""
    if constraint is None:
        return memory, {}
    ratios = constraint.ratios(mixture)
    raised = jnp.maximum(0, memory[NAME] + constraint.rate * (ratios - 1))
    multipliers = jnp.where(active, raised, memory[NAME])
    metrics: Metrics = {}
    for m, name in enumerate(constraint.names):
        metrics[f"{name}_of_budget"] = ratios[m]
        metrics[f"{name}_multiplier"] = multipliers[m]
    return memory | {NAME: multipliers}, metrics
