"""Sinkhorn's normalisation: a matrix of scores made nearly doubly stochastic, in the logarithm."""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import FLOOR, MASKED


def sinkhorn(scores: Array, iterations: int, keep: Array | None = None) -> Array:
    """exp(scores), its rows and then its columns divided by their sums, `iterations` times.

    Args:
      scores: `[..., T, T]`, float32 or wider.
      iterations: at least 1.
      keep: bool, broadcastable to `scores`: the entries there are; None if all.

    Returns:
      `[..., T, T]`, zero outside `keep`. Columns that have entries sum to one; rows nearly.
    """
    for step in range(iterations):
        scores = scores - _log_sum(scores, keep, -1)
        if step < iterations - 1:
            scores = scores - _log_sum(scores, keep, -2)
    # The last division is not taken in the logarithm: where one entry of a column is nearly all of
    # it, the difference of two large logarithms would have lost the digits that this keeps.
    terms, _ = _terms(scores, keep, -2)
    total = terms.sum(-2, keepdims=True)
    return terms / jnp.where(total == 0, 1, total)


def _terms(scores: Array, keep: Array | None, axis: int) -> tuple[Array, Array]:
    """exp(scores - top), zero outside `keep`, and top, the largest over `axis`."""
    shown = scores if keep is None else jnp.where(keep, scores, MASKED)
    top = jnp.maximum(jax.lax.stop_gradient(shown.max(axis, keepdims=True)), FLOOR)
    return jnp.exp(shown - top), top


def _log_sum(scores: Array, keep: Array | None, axis: int) -> Array:
    """log sum exp over `axis`, kept; 0 where there is no entry."""
    terms, top = _terms(scores, keep, axis)
    total = terms.sum(axis, keepdims=True)
    return jnp.where(total == 0, 0, jnp.log(jnp.where(total == 0, 1, total)) + top)
