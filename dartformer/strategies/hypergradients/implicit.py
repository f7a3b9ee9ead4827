"""Implicit gradients: the upper level's gradient where the weights have responded in full.

    d_a L_v(w*(a), a) = d_a L_v - d_a <grad_w L_t(w, a), x>
    with    H x = grad_w L_v,    H = d2 L_t / dw2

Hessian-vector products alone (`jax.jvp` of the gradient) solve for x. The gradient is exact where w
is a minimum of L_t. The optimizer of the weights plays no part.

Sources: Lorraine et al. 2020, arXiv 1911.02590 (Neumann series); Pedregosa 2016, arXiv 1602.02355,
and Rajeswaran et al. 2019, arXiv 1909.04630 (conjugate gradient).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.base import Weights
from dartformer.strategies.hypergradients.bilevel import Scalar, Update, Upper

Solve = Callable[[Callable[[Weights], Weights], Weights], Weights]
"""(v -> H v, right-hand side b) -> x with H x near b."""


def implicit(lower: Scalar, upper: Scalar, weights: Weights, alphas: Array, solve: Solve) -> Upper:
    """The implicit gradient, with `solve` for the linear system."""
    gradients_of = jax.value_and_grad(upper, argnums=(0, 1), has_aux=True)
    (loss, metrics), (at_weights, direct) = gradients_of(weights, alphas)

    def lower_gradient(weights: Weights, alphas: Array) -> Weights:
        return jax.grad(lambda w: lower(w, alphas)[0])(weights)

    def hessian_product(v: Weights) -> Weights:
        # Forward over reverse: as expensive as two gradients, and no Hessian is formed.
        _, product = jax.jvp(lambda w: lower_gradient(w, alphas), (weights,), (v,))
        return product

    # x is a constant here: its own derivative is not part of the implicit gradient.
    x = solve(hessian_product, at_weights)
    mixed = jax.grad(lambda a: optax.tree.vdot(lower_gradient(weights, a), x))(alphas)
    return Upper(direct - mixed, loss, metrics)


@dataclass(frozen=True)
class Neumann:
    """Implicit, by a Neumann series: as if the weights took `terms` more steps of descent.

        x = rate * sum_{j <= terms} (I - rate H)^j b

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

        return implicit(lower, upper, weights, alphas, self.solve)

    def solve(self, product: Callable[[Weights], Weights], b: Weights) -> Weights:
        """See `Solve`."""

        def add(_: int, carry: tuple[Weights, Weights]) -> tuple[Weights, Weights]:
            power, total = carry
            power = jax.tree.map(lambda p, h: p - self.rate * h, power, product(power))
            return power, optax.tree.add(total, power)

        # A loop and not unrolled: the program stays as large as that of one product.
        _, total = jax.lax.fori_loop(0, self.terms, add, (b, b))
        return optax.tree.scale(self.rate, total)


class Iterate(NamedTuple):
    """The state of conjugate gradients; `running` is a bool scalar."""

    x: Weights
    residual: Weights
    direction: Weights
    running: Array


@dataclass(frozen=True)
class ConjugateGradient:
    """Implicit, by conjugate gradients on (H + damping I) x = b.

    It stops at a direction without curvature.

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

        return implicit(lower, upper, weights, alphas, self.solve)

    def solve(self, product: Callable[[Weights], Weights], b: Weights) -> Weights:
        """See `Solve`."""
        square = optax.tree.vdot
        norm = square(b, b)

        def iterate(_: int, carry: Iterate) -> Iterate:
            image = optax.tree.add_scale(product(carry.direction), self.damping, carry.direction)
            curvature = square(carry.direction, image)
            before = square(carry.residual, carry.residual)
            # Beyond a residual of rounding errors, or along no curvature, a step would be noise or
            # without end.
            rounding = jnp.finfo(before.dtype).eps ** 2 * norm
            running = carry.running & (curvature > 0) & (before > rounding)
            size = jnp.where(running, before / jnp.where(running, curvature, 1), 0)
            x = optax.tree.add_scale(carry.x, size, carry.direction)
            residual = optax.tree.add_scale(carry.residual, -size, image)
            after = square(residual, residual)
            turn = jnp.where(running, after / jnp.where(running, before, 1), 0)
            direction = optax.tree.add_scale(residual, turn, carry.direction)
            return Iterate(x, residual, direction, running)

        start = Iterate(optax.tree.zeros_like(b), b, b, jnp.ones((), bool))
        return jax.lax.fori_loop(0, self.terms, iterate, start).x
