"""Whether the numbers of a training's state are finite: a state that is not is never saved."""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.training.checkpoint import PyTree, named_leaves

UNMEASURED = "memory/"
"""Begins the names of what a search's extras remember, where NaN means that it is not measured
yet."""


@jax.jit
def _all_finite(leaves: list[Array]) -> list[Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def not_finite(state: PyTree) -> str:
    """The name of the first array of a state with a NaN or infinity; empty where all are finite.

    Parameters, alphas and the optimizers' moments are read once; a scalar of each is fetched."""
    names, leaves = [], []
    for name, leaf in named_leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not name.startswith(UNMEASURED):
            names.append(name)
            leaves.append(leaf)
    for name, finite in zip(names, jax.device_get(_all_finite(leaves)), strict=True):
        if not finite:
            return name
    return ""
