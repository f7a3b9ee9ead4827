"""Relaxations: from alphas to the mixtures at which weights and alphas take their steps.

They work on rows `[1 or L, 1 or H, K]`, the free places of the search. `alive`, of the same shape,
marks the candidates still in play (None: all); a dropped one has weight zero, exactly.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Alive = Array | None
Draw = Callable[[Array, Alive, Array, Array], Array]
"""(alphas, alive, key, progress between 0 and 1) -> rows, differentiable with respect to the
alphas."""


class Relaxation(NamedTuple):
    """How alphas become rows of a mixture.

    soft: (alphas, alive) -> rows: what the alphas stand for, without samples.
    lower: rows at which the weights take a step.
    upper: rows through which the alphas' loss is differentiated.
    settle: (alphas before, alphas after, alive, key of `upper`) -> alphas: the end of their step.
    """

    soft: Callable[[Array, Alive], Array]
    lower: Draw
    upper: Draw
    settle: Callable[[Array, Array, Alive, Array], Array] = lambda before, after, alive, key: after


def living(alphas: Array, alive: Alive) -> Array:
    """Alphas, minus infinity where a candidate is dropped."""
    if alive is None:
        return alphas
    # exp(-inf) is an exact zero, and so is its gradient.
    return jnp.where(alive, alphas, -jnp.inf)


def softmax(alphas: Array, alive: Alive = None) -> Array:
    """softmax over K (DARTS, arXiv 1806.09055, eq. 2)."""
    return jax.nn.softmax(living(alphas, alive), -1)


def everywhere(rows: Array, mixture_shape: tuple[int, int, int]) -> Array:
    """Rows `[R, C, K]` of alphas as a mixture `[L, H, K]`: R divides L, and C divides H."""
    for axis, size in enumerate(mixture_shape[:2]):
        rows = jnp.repeat(rows, size // rows.shape[axis], axis)
    return rows


def one_hot(choice: Array, like: Array) -> Array:
    """`[..., K]` of the integer choices `[...]`, as many candidates and of the dtype of `like`."""
    return jax.nn.one_hot(choice, like.shape[-1], dtype=like.dtype)


def uniform_path(alphas: Array, alive: Alive, key: Array, progress: Array) -> Array:
    """One candidate in each row, all equally likely (Guo et al. 2020, arXiv 1904.00420, eq. 7)."""
    choice = jax.random.randint(key, alphas.shape[:-1], 0, alphas.shape[-1])
    return one_hot(choice, alphas)


def deterministic(soft: Callable[[Array, Alive], Array]) -> Relaxation:
    """A relaxation without samples: every step is taken at the soft rows."""

    def draw(alphas: Array, alive: Alive, key: Array, progress: Array) -> Array:
        return soft(alphas, alive)

    return Relaxation(soft, draw, draw)


SOFTMAX = deterministic(softmax)
