"""Sinkhorn's normalisation, in the logarithm: a matrix becomes nearly doubly stochastic."""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import FLOOR, MASKED


def sinkhorn(scores: Array, iterations: int, keep: Array | None = None) -> Array:
    """exp(scores), with its rows and then its columns divided by their sums, `iterations` times.

    Paper: Sinkhorn's normalisation as in Tay et al. 2020, arXiv:2002.11296, section 3.1.

    Args:
      scores: `[..., T, T]`, float32 or wider.
      iterations: at least 1.
      keep: bool, broadcastable to `scores`: which entries exist; None if all do.

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
    divisor = jnp.where(total == 0, 1, total)
    return terms / divisor


def _terms(scores: Array, keep: Array | None, axis: int) -> tuple[Array, Array]:
    """exp(scores - top), zero outside `keep`, and top, the largest over `axis`."""
    if keep is not None:
        scores = jnp.where(keep, scores, MASKED)
    largest = jax.lax.stop_gradient(scores.max(axis, keepdims=True))
    # Above every masked score, so that a line of masked scores alone gives zeros.
    top = jnp.maximum(largest, FLOOR)
    return jnp.exp(scores - top), top


def _log_sum(scores: Array, keep: Array | None, axis: int) -> Array:
    """log sum exp over `axis`, kept; 0 where there is no entry."""
    terms, top = _terms(scores, keep, axis)
    total = terms.sum(axis, keepdims=True)
    empty = total == 0
    # The inner `where` keeps log(0), whose gradient is infinite, from being computed at all.
    return jnp.where(empty, 0, jnp.log(jnp.where(empty, 1, total)) + top)
