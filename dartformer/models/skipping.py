"""A sum of branches that skips some of them at run time, forward and backward, at no cost."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Branch = Callable[[Any, Any, Any], Array]
"""(shared, private, fixed) to an array; of one shape and dtype for all branches."""

Arrays = Any
"""A pytree of arrays."""


def sum_of_active(
    branches: Sequence[Branch],
    active: Array,
    shared: Arrays,
    private: Sequence[Arrays],
    fixed: Arrays,
) -> Array:
    """`sum_k branches[k](shared, private[k], fixed)` over the k for which `active[k]`.

    In JAX's own gradient of a chain of `cond`, each skipped branch makes zeros for everything that
    it would have read, to be added up afterwards. Here the gradients so far go through the backward
    `cond`s, as the sum so far goes through those of the forward pass, so a skipped branch neither
    writes nor adds anything large. Branches are run again in the backward pass: peak memory is near
    that of one, not of all. JAX can differentiate the backward pass, so a gradient has gradients,
    and products with vectors in either mode.

    Args:
      branches: K functions. They must not close over what is differentiated.
      active: `[K]` bool. Under a `jax.vmap` over it all branches are computed, and the skipped ones
        dropped.
      shared: arrays that all branches read, floating.
      private: for each branch, arrays that it alone reads, floating.
      fixed: arrays that are not differentiated; their gradient is zero.

    Returns:
      The sum; zeros where nothing is active.
    """

    def run(active: Array, shared: Arrays, private: Sequence[Arrays], fixed: Arrays) -> Array:
        shape = jax.eval_shape(branches[0], shared, private[0], fixed)
        out = jnp.zeros(shape.shape, shape.dtype)
        for k, branch in enumerate(branches):

            def computed(out: Array, *arguments: Arrays, branch: Branch = branch) -> Array:
                # Without the checkpoint, a branch that is not taken still writes residuals, of
                # zeros, where this is differentiated as a part of a gradient.
                return out + jax.checkpoint(branch)(*arguments)

            out = jax.lax.cond(active[k], computed, unchanged, out, shared, private[k], fixed)
        return out

    def backward(residuals: Arrays, cotangent: Array) -> Arrays:
        active, shared, private, fixed = residuals
        shared_gradient = jax.tree.map(jnp.zeros_like, shared)
        private_gradients = []
        for k, branch in enumerate(branches):

            def computed(
                total: Arrays,
                shared: Arrays,
                private: Arrays,
                fixed: Arrays,
                cotangent: Array,
                branch: Branch = branch,
            ) -> tuple[Arrays, Arrays]:
                _, pull = jax.vjp(lambda s, p: branch(s, p, fixed), shared, private)
                of_shared, of_private = pull(cotangent)
                return jax.tree.map(jnp.add, total, of_shared), of_private

            shared_gradient, private_gradient = jax.lax.cond(
                active[k],
                jax.checkpoint(computed),
                skipped,
                shared_gradient,
                shared,
                private[k],
                fixed,
                cotangent,
            )
            private_gradients.append(private_gradient)
        return None, shared_gradient, private_gradients, None

    def forward(*arguments: Arrays) -> tuple[Array, Arrays]:
        # The arguments are all that the backward pass needs, since it runs the branches again.
        return run(*arguments), arguments

    total = jax.custom_vjp(run)
    total.defvjp(forward, backward)
    return total(active, shared, list(private), fixed)


def unchanged(out: Array, *_: Arrays) -> Array:
    """A skipped branch, forward."""
    return out


def skipped(total: Arrays, shared: Arrays, private: Arrays, *_: Arrays) -> tuple[Arrays, Arrays]:
    """A skipped branch, backward: nothing for what all read, zeros for what it alone reads."""
    return total, jax.tree.map(jnp.zeros_like, private)
