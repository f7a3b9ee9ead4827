"""Implicit gradients: the upper level's gradient where the weights have answered to the alphas in
full.

    d_a L_v(w*(a), a) = d_a L_v - d_a <grad_w L_t(w, a), x>    with    H x = grad_w L_v,   H = d2
    L_t / dw2

x is found with Hessian-vector products alone (`jax.jvp` of the gradient); it is exact where w is a
minimum of L_t. The optimiser of the weights does not enter.

Sources: Lorraine et al. 2020, arXiv 1911.02590 (Neumann series); Pedregosa 2016, arXiv 1602.02355,
and Rajeswaran et al. 2019, arXiv 1909.04630 (conjugate gradient).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.hypergradients.bilevel import Scalar, Update, Upper, Weights

Solve = Callable[[Callable[[Weights], Weights], Weights], Weights]
"""(v -> H v, right-hand side b) -> x with H x near b."""


def implicit(lower: Scalar, upper: Scalar, weights: Weights, alphas: Array, solve: Solve) -> Upper:
    """The gradient with a given solver."""
    (loss, metrics), (at_weights, direct) = jax.value_and_grad(upper, (0, 1), has_aux=True)(
        weights, alphas
    )

    def lower_gradient(weights: Weights, alphas: Array) -> Weights:
        return jax.grad(lambda w: lower(w, alphas)[0])(weights)

    def curved(v: Weights) -> Weights:
        return jax.jvp(lambda w: lower_gradient(w, alphas), (weights,), (v,))[1]

    x = solve(curved, at_weights)
    mixed = jax.grad(lambda a: optax.tree.vdot(lower_gradient(weights, a), x))(alphas)
    return Upper(direct - mixed, loss, metrics)


@dataclass(frozen=True)
class Neumann:
    """x = rate * sum_{j <= terms} (I - rate H)^j b: `terms` more steps of gradient descent, looked
    back through.

    Attributes:
      terms: products with the Hessian; 0 is the second order of DARTS with plain SGD, taken at w
        instead of w'.
      rate: must be below 2 / (largest eigenvalue of H), or the series grows.
    """

    order: ClassVar[int] = 2

    terms: int = 10
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.terms < 0:
            raise InputError(f"neumann: terms must be at least 0, got {self.terms}.")
        if self.rate <= 0:
            raise InputError(f"neumann: rate must be above 0, got {self.rate}.")

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper:
        """See `Hypergradient`."""

        def solve(curved: Callable[[Weights], Weights], b: Weights) -> Weights:
            def add(_: int, carry: tuple[Weights, Weights]) -> tuple[Weights, Weights]:
                power, total = carry
                power = jax.tree.map(lambda p, h: p - self.rate * h, power, curved(power))
                return power, optax.tree.add(total, power)

            return optax.tree.scale(self.rate, jax.lax.fori_loop(0, self.terms, add, (b, b))[1])

        return implicit(lower, upper, weights, alphas, solve)


@dataclass(frozen=True)
class ConjugateGradient:
    """Solves (H + damping I) x = b by conjugate gradients, and stops where it meets a direction of
    no curvature.

    Attributes:
      terms: iterations, each one product with the Hessian.
      damping: added to every eigenvalue of H, which need not be positive far from a minimum.
    """

    order: ClassVar[int] = 2

    terms: int = 10
    damping: float = 0.1

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise InputError(f"conjugate_gradient: terms must be at least 1, got {self.terms}.")
        if self.damping < 0:
            raise InputError(f"conjugate_gradient: damping must be at least 0, got {self.damping}.")

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper:
        """See `Hypergradient`."""

        def solve(curved: Callable[[Weights], Weights], b: Weights) -> Weights:
            square = optax.tree.vdot
            first = square(b, b)

            def iterate(_: int, carry: tuple[Weights, Weights, Weights, Array]) -> tuple[Any, ...]:
                x, residual, direction, on = carry
                image = optax.tree.add_scale(curved(direction), self.damping, direction)
                curvature, before = square(direction, image), square(residual, residual)
                # Beyond a residual of rounding errors, or along no curvature, a step would be noise
                # or without end.
                on = on & (curvature > 0) & (before > jnp.finfo(before.dtype).eps ** 2 * first)
                size = jnp.where(on, before / jnp.where(on, curvature, 1), 0)
                x, residual = (
                    optax.tree.add_scale(x, size, direction),
                    optax.tree.add_scale(residual, -size, image),
                )
                turn = jnp.where(on, square(residual, residual) / jnp.where(on, before, 1), 0)
                return x, residual, optax.tree.add_scale(residual, turn, direction), on

            start = (optax.tree.zeros_like(b), b, b, jnp.ones((), bool))
            return jax.lax.fori_loop(0, self.terms, iterate, start)[0]

        return implicit(lower, upper, weights, alphas, solve)
