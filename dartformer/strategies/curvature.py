"""The curvature of the alphas' loss: eigenvalues of d2L/da2, by Lanczos iteration.

A large dominant eigenvalue means a sharp minimum, where the loss of the discretized mixture says
little about that of the soft one (Zela et al. 2020, "Understanding and Robustifying Differentiable
Architecture Search", arXiv 1909.09656).
"""

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
    """Ritz values of the Jacobian of `gradient` at `alphas`, ascending.

    The ends of the spectrum converge first. Each iteration costs one `jax.jvp` of the gradient. The
    Jacobian must be symmetric, as that of a gradient is.

    Args:
      gradient: alphas -> dL/da, of the same shape; differentiable once more.
      alphas: any shape, n numbers in all.
      key: of the random directions.
      iterations: n at most.

    Returns:
      `[min(iterations, n)]`, of the alphas' dtype.
    """
    n = alphas.size
    rank = min(iterations, n)
    directions = jax.random.normal(key, (rank, n), alphas.dtype)
    small = 10 * n * jnp.finfo(alphas.dtype).eps

    def product(v: Array) -> Array:
        _, image = jax.jvp(gradient, (alphas,), (v.reshape(alphas.shape),))
        return image.reshape(n)

    def orthogonal(v: Array, basis: Array) -> Array:
        # Against the whole basis and twice: otherwise rounding repeats converged eigenvalues.
        for _ in range(2):
            v = v - basis.T @ (basis @ v)
        return v

    def iterate(basis: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
        image = product(basis[i])
        diagonal, scale = image @ basis[i], jnp.linalg.norm(image)
        residual = orthogonal(image, basis)
        norm = jnp.linalg.norm(residual)
        # Where the basis spans an invariant subspace, go on from a new random direction.
        invariant = norm <= small * scale
        fresh = orthogonal(directions[(i + 1) % rank], basis)
        fresh = fresh / jnp.linalg.norm(fresh)
        following = jnp.where(invariant, fresh, residual / jnp.where(invariant, 1, norm))
        # The row after the last is written nowhere: out-of-bounds updates are dropped.
        basis = basis.at[i + 1].set(following, mode="drop")
        return basis, (diagonal, jnp.where(invariant, 0, norm))

    first = directions[0] / jnp.linalg.norm(directions[0])
    basis = jnp.zeros((rank, n), alphas.dtype).at[0].set(first)
    _, (diagonal, norms) = jax.lax.scan(iterate, basis, jnp.arange(rank))
    off = norms[:-1]
    # The Hessian in the basis of Lanczos, whose eigenvalues are the Ritz values.
    tridiagonal = jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)
    return jnp.linalg.eigvalsh(tridiagonal)


def dominant_eigenvalue(
    gradient: Callable[[Array], Array], alphas: Array, key: Array, iterations: int = ITERATIONS
) -> Array:
    """lambda_max of the Hessian at `alphas`: the largest eigenvalue, a scalar.

    "Dominant" as in RobustDARTS, whose code takes the largest: the sharpest upward curvature. A
    saddle's strongest downward curvature is `eigenvalues(...)[0]`."""
    return eigenvalues(gradient, alphas, key, iterations)[-1]
