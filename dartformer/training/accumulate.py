"""Batches in parts: gradients that are added up part by part, in the memory of one part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Arrays = Any
"""A pytree of arrays."""

PartLoss = Callable[[Arrays, Arrays, Arrays, Array], tuple[Array, Arrays]]
"""(weights, mixture, part of a batch, key) -> (what the part adds to the loss, arrays that lead with
its examples)."""


def summed(part_loss: PartLoss, parts: int) -> PartLoss:
    """The sum of `part_loss` over the parts of a batch, with its arrays for the whole batch.

    The gradient of a part is computed right after its loss, so that nothing of a part is kept for a
    backward pass, and nothing is computed twice. Each part draws from a key of its own.

    The result is differentiated with respect to weights and mixture, and can be so again.

    Args:
      part_loss: of weights, a mixture or None, and a part. Its arrays are not differentiated.
      parts: how many there are; must divide the examples. Part m holds every `parts`-th example
        from example m on: devices that share a batch share each part, too.
    """

    def of_part(weights: Arrays, mixture: Arrays, part: Arrays, key: Array) -> tuple[Array, Arrays]:
        value, arrays = part_loss(weights, mixture, part, key)
        return value, jax.lax.stop_gradient(arrays)

    def total(weights: Arrays, mixture: Arrays, batch: Arrays, key: Array) -> tuple[Array, Arrays]:
        def one(carry: None, numbered: tuple[Arrays, Array]) -> tuple[None, tuple[Array, Arrays]]:
            part, number = numbered
            return None, of_part(weights, mixture, part, jax.random.fold_in(key, number))

        _, (values, arrays) = jax.lax.scan(one, None, numbered(batch, parts))
        return values.sum(), jax.tree.map(joined, arrays)

    def forward(*arguments: Arrays) -> tuple[tuple[Array, Arrays], Arrays]:
        weights, mixture, batch, key = jax.tree.map(_value, arguments, is_leaf=_is_primal)
        by = tuple(i for i in (0, 1) if _is_perturbed(arguments[i]))
        gradient_of = jax.value_and_grad(of_part, by, has_aux=True)

        # Differentiated again, each part is computed again.
        @jax.checkpoint
        def one(
            gradients: Arrays, numbered: tuple[Arrays, Array]
        ) -> tuple[Arrays, tuple[Array, Arrays]]:
            part, number = numbered
            key_of_part = jax.random.fold_in(key, number)
            outputs, of_this = gradient_of(weights, mixture, part, key_of_part)
            return jax.tree.map(jnp.add, gradients, of_this), outputs

        zeros = jax.tree.map(jnp.zeros_like, tuple((weights, mixture)[i] for i in by))
        gradients, (values, arrays) = jax.lax.scan(one, zeros, numbered(batch, parts))
        found: list[Arrays] = [None, None]
        for i, gradient in zip(by, gradients, strict=True):
            found[i] = gradient
        return (values.sum(), jax.tree.map(joined, arrays)), tuple(found)

    def backward(gradients: Arrays, cotangents: tuple[Array, Arrays]) -> Arrays:
        cotangent, _ = cotangents
        of_weights, of_mixture = jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), gradients)
        return of_weights, of_mixture, None, None

    run = jax.custom_vjp(total)
    run.defvjp(forward, backward, symbolic_zeros=True)
    return run


def numbered(batch: Arrays, parts: int) -> tuple[Arrays, Array]:
    """The parts of a batch, each array `[parts, B / parts, ...]`, and their numbers."""

    def cut(x: Array) -> Array:
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch), jnp.arange(parts)


def joined(x: Array) -> Array:
    """`[parts, B / parts, ...]` to `[B, ...]`, in the order of the batch."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _is_primal(node: Any) -> bool:
    return isinstance(node, jax.custom_derivatives.CustomVJPPrimal)


def _value(primal: Any) -> Array:
    value: Array = primal.value
    return value


def _is_perturbed(primals: Arrays) -> bool:
    """Whether any of these arrays is differentiated."""
    leaves = jax.tree.leaves(primals, is_leaf=_is_primal)
    return any(leaf.perturbed for leaf in leaves)
