"""The gradient of the upper level: d/da of the loss on the alphas' data, as the weights respond.

    min_a  L_v(w*(a), a)    with   w*(a) = argmin_w L_t(w, a)

w* is replaced by one step of the *real* weight optimizer, w'(a) = update(w, grad_w L_t(w, a)), with
clipping, momentum, decay and Adam's moments as they are. There are three ways to differentiate
through it, with one signature.

Sources: DARTS, arXiv 1806.09055, eq. 5-8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dartformer.strategies.base import Metrics, Weights

Scalar = Callable[[Weights, Array], tuple[Array, Metrics]]
"""(weights, alphas) -> (loss, metrics)."""

Update = Callable[[Weights], Weights]
"""gradient -> new weights: one step of the weight optimizer from its present state."""


class Upper(NamedTuple):
    """The upper level's gradient `[like alphas]`, its loss and the loss function's metrics."""

    gradient: Array
    loss: Array
    metrics: Metrics


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
    """First-order: ignores how the weights react to the architecture weights; cheapest."""

    order: ClassVar[int] = 1

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper:
        """See `Hypergradient`. w'(a) := w, or xi = 0 in the paper."""
        gradient_of = jax.value_and_grad(upper, argnums=1, has_aux=True)
        (loss, metrics), gradient = gradient_of(weights, alphas)
        return Upper(gradient, loss, metrics)


@dataclass(frozen=True)
class Second:
    """Second-order, exact: differentiates through one step of the weights' optimizer (eq. 6)."""

    order: ClassVar[int] = 2

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper:
        """See `Hypergradient`."""

        def through(alphas: Array) -> tuple[Array, Metrics]:
            # The alphas act twice: on the step of the weights here, and on the loss below.
            gradient = jax.grad(lambda w: lower(w, alphas)[0])(weights)
            return upper(update(gradient), alphas)

        (loss, metrics), gradient = jax.value_and_grad(through, has_aux=True)(alphas)
        return Upper(gradient, loss, metrics)


@dataclass(frozen=True)
class Finite:
    """Second-order, as published: the mixed derivative by finite differences (eq. 8).

    With c the upper level's gradient pulled back through the optimizer step (c = -xi * grad_w' L_v
    for plain SGD),

        d_a <grad_w L_t(w, a), c> = [grad_a L_t(w + h c, a) - grad_a L_t(w - h c, a)] / 2h

    where |h c| = 0.01 as in the authors' code.
    """

    order: ClassVar[int] = 1

    def __call__(
        self, lower: Scalar, upper: Scalar, update: Update, weights: Weights, alphas: Array
    ) -> Upper:
        """See `Hypergradient`."""
        lower_gradient = jax.grad(lambda w: lower(w, alphas)[0])(weights)
        # Pulled back through the optimizer, so that momentum and clipping scale c as the step.
        new_weights, pull_back = jax.vjp(update, lower_gradient)
        gradients_of = jax.value_and_grad(upper, argnums=(0, 1), has_aux=True)
        (loss, metrics), (at_weights, direct) = gradients_of(new_weights, alphas)
        (direction,) = pull_back(at_weights)
        norm = optax.tree.norm(direction)
        # Without a direction there is nothing to difference, and 0 / 0 would be NaN.
        h = 0.01 / jnp.where(norm == 0, 1, norm)

        def alphas_gradient(sign: float) -> Array:
            def shift(w: Array, c: Array) -> Array:
                return w + (sign * h * c).astype(w.dtype)

            shifted = jax.tree.map(shift, weights, direction)
            return jax.grad(lambda a: lower(shifted, a)[0])(alphas)

        # Central differences, whose error is of order h^2.
        mixed = (alphas_gradient(1.0) - alphas_gradient(-1.0)) / (2 * h)
        return Upper(direct + mixed, loss, metrics)
