"""The curvature of the alphas' loss: eigenvalues of d2L/da2, by Lanczos iteration over
Hessian-vector products.

A large dominant eigenvalue means a sharp minimum: the loss of the rounded mixture says little about
that of the soft one (Zela et al. 2020, "Understanding and Robustifying Differentiable Architecture
Search", arXiv 1909.09656)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

ITERATIONS = 20
"""Enough for the ends of the spectrum; with as many as there are alphas the answer is exact to
rounding."""


def eigenvalues(
    gradient: Callable[[Array], Array], alphas: Array, key: Array, iterations: int = ITERATIONS
) -> Array:
    """Ritz values of the Jacobian of `gradient` at `alphas`, ascending; the ends are the first to
    be right.

    Each iteration costs one `jax.jvp` of the gradient; the basis is orthogonalised in full, twice,
    so that no eigenvalue appears more often than it should, and where it spans an invariant
    subspace it goes on from a new random direction. The Jacobian must be symmetric, as that of a
    gradient is.

    Args:
      gradient: alphas -> dL/da, of the same shape; differentiable once more.
      alphas: any shape, n numbers in all.
      key: of the random directions.
      iterations: at most n are made.

    Returns:
      `[min(iterations, n)]`, of the alphas' dtype.
    """
    n = alphas.size
    rank = min(iterations, n)
    directions = jax.random.normal(key, (rank, n), alphas.dtype)
    small = 10 * n * jnp.finfo(alphas.dtype).eps

    def product(v: Array) -> Array:
        return jax.jvp(gradient, (alphas,), (v.reshape(alphas.shape),))[1].reshape(n)

    def orthogonal(v: Array, basis: Array) -> Array:
        for _ in range(2):
            v = v - basis.T @ (basis @ v)
        return v

    def iterate(basis: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
        image = product(basis[i])
        on, scale = image @ basis[i], jnp.linalg.norm(image)
        rest = orthogonal(image, basis)
        off = jnp.linalg.norm(rest)
        ended = off <= small * scale
        fresh = orthogonal(directions[(i + 1) % rank], basis)
        rest = jnp.where(ended, fresh / jnp.linalg.norm(fresh), rest / jnp.where(ended, 1, off))
        # The row after the last is written nowhere: out-of-bounds updates are dropped.
        return basis.at[i + 1].set(rest, mode="drop"), (on, jnp.where(ended, 0, off))

    basis = (
        jnp.zeros((rank, n), alphas.dtype).at[0].set(directions[0] / jnp.linalg.norm(directions[0]))
    )
    _, (on, off) = jax.lax.scan(iterate, basis, jnp.arange(rank))
    return jnp.linalg.eigvalsh(jnp.diag(on) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1))


def dominant_eigenvalue(
    gradient: Callable[[Array], Array], alphas: Array, key: Array, iterations: int = ITERATIONS
) -> Array:
    """lambda_max of the Hessian at `alphas`: the largest eigenvalue, a scalar.

    "Dominant" as in RobustDARTS, whose code takes the largest: the sharpest upward curvature. A
    saddle's strongest downward curvature is `eigenvalues(...)[0]`."""
    return eigenvalues(gradient, alphas, key, iterations)[-1]
