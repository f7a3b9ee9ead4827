"""The gradient of the upper level: d/da of the loss on the alphas' data, at weights that answer to
a.

    min_a  L_v(w*(a), a)    with   w*(a) = argmin_w L_t(w, a)

w* is replaced by one step of the *real* weight optimiser, w'(a) = update(w, grad_w L_t(w, a)): with
clipping, momentum, decay and Adam's moments as they stand. Three ways to differentiate through it,
of one signature.

Sources: DARTS, arXiv 1806.09055, eq. 5-8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

Weights = Any
Scalar = Callable[[Weights, Array], tuple[Array, dict[str, Array]]]
"""(weights, alphas) -> (loss, metrics)."""

Update = Callable[[Weights], Weights]
"""gradient -> new weights: one step of the weight optimiser from where it stands now."""


class Upper(NamedTuple):
    """The upper level's gradient `[like alphas]`, its loss and the loss function's metrics."""

    gradient: Array
    loss: Array
    metrics: dict[str, Array]


class Hypergradient(Protocol):
    """A frozen dataclass of its options.

    Attributes:
      order: derivatives it takes of the network.
    """

    order: ClassVar[int]

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper: ...


@dataclass(frozen=True)
class First:
    """w'(a) := w. Half the truth at a quarter of the price (xi = 0 in the paper)."""

    order: ClassVar[int] = 1

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper:
        """See `Hypergradient`."""
        (loss, metrics), gradient = jax.value_and_grad(upper, argnums=1, has_aux=True)(
            weights, alphas
        )
        return Upper(gradient, loss, metrics)


@dataclass(frozen=True)
class Second:
    """Exact: differentiates through the inner optimiser step itself (eq. 6, with no
    approximation)."""

    order: ClassVar[int] = 2

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper:
        """See `Hypergradient`."""

        def through(alphas: Array) -> tuple[Array, dict[str, Array]]:
            gradient = jax.grad(lambda w: lower(w, alphas)[0])(weights)
            return upper(update(gradient), alphas)

        (loss, metrics), gradient = jax.value_and_grad(through, has_aux=True)(alphas)
        return Upper(gradient, loss, metrics)


@dataclass(frozen=True)
class Finite:
    """The published approximation (eq. 8): the mixed derivative as a difference of two alpha
    gradients.

    With c the upper level's gradient pulled back through the optimiser step (c = -xi * grad_w' L_v
    for plain SGD), d_a <grad_w L_t(w, a), c> = [grad_a L_t(w + h c, a) - grad_a L_t(w - h c, a)] /
    2h, where |h c| = 0.01 as in the authors' code."""

    order: ClassVar[int] = 1

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper:
        """See `Hypergradient`."""
        lower_gradient = jax.grad(lambda w: lower(w, alphas)[0])(weights)
        moved, pull_back = jax.vjp(update, lower_gradient)
        (loss, metrics), (at_moved, direct) = jax.value_and_grad(
            upper, argnums=(0, 1), has_aux=True
        )(moved, alphas)
        (direction,) = pull_back(at_moved)
        norm = optax.tree.norm(direction)
        h = 0.01 / jnp.where(norm == 0, 1, norm)

        def alpha_gradient(sign: float) -> Array:
            shifted = jax.tree.map(
                lambda w, c: w + (sign * h * c).astype(w.dtype), weights, direction
            )
            return jax.grad(lambda a: lower(shifted, a)[0])(alphas)

        mixed = (alpha_gradient(1.0) - alpha_gradient(-1.0)) / (2 * h)
        return Upper(direct + mixed, loss, metrics)
