"""A budget as a constraint of the alphas' problem: an augmented Lagrangian with dual ascent.

    min_a L(a)   with   r_m(a) = expected cost / limit <= 1  for every limit m loss:        L +
    sum_m (max(0, u_m + c g_m)^2 - u_m^2) / 2c,     g = r - 1,  where r_m > floor, else 0
    multipliers: u_m <- max(0, u_m + rate g_m)

(Bertsekas 1982, "Constrained optimization and Lagrange multiplier methods", section 3.1, for
inequalities.) A weight chosen beforehand either does nothing or drives every place to the cheapest
candidate; the multiplier settles where the limit is just met. It lags behind the alphas, so that it
would push below the limit for a while: the floor cuts that off, and a search is never pressed below
that share of its budget."""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.strategies.base import Constraint

CURVATURE = 1.0
"""c: the pressure for each share by which a limit is exceeded, before any multiplier has grown."""

NAME = "multipliers"
"""In a state's memory."""


def start(constraint: Constraint | None) -> dict[str, Array]:
    """What a state must remember."""
    return {} if constraint is None else {NAME: jnp.zeros(len(constraint.names))}


def pressure(
    constraint: Constraint | None, mixture: Array, memory: dict[str, Array]
) -> Array | float:
    """What is added to the alphas' loss at the mixture that they stand for."""
    if constraint is None:
        return 0.0
    ratios, multipliers = constraint.ratios(mixture), jax.lax.stop_gradient(memory[NAME])
    term = (jnp.maximum(0, multipliers + CURVATURE * (ratios - 1)) ** 2 - multipliers**2) / (
        2 * CURVATURE
    )
    return jnp.sum(jnp.where(ratios > constraint.floor, term, 0))


def ascend(
    constraint: Constraint | None, mixture: Array, memory: dict[str, Array], active: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The memory after a step, where the alphas are `active`; and what is logged: cost over limit,
    and multipliers."""
    if constraint is None:
        return memory, {}
    ratios = constraint.ratios(mixture)
    moved = jnp.maximum(0, memory[NAME] + constraint.rate * (ratios - 1))
    moved = jnp.where(active, moved, memory[NAME])
    shown = {f"{name}_of_budget": ratios[m] for m, name in enumerate(constraint.names)}
    shown.update({f"{name}_multiplier": moved[m] for m, name in enumerate(constraint.names)})
    return {**memory, NAME: moved}, shown
