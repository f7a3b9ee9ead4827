"""A sum of branches of which some are skipped at run time, forward and backward, at no cost for
those that are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Branch = Callable[[Any, Any, Any], Array]
"""(given, own, fixed) to an array; of one shape and dtype for all branches."""


def sum_of_active(
    branches: Sequence[Branch], active: Array, given: Any, own: Sequence[Any], fixed: Any
) -> Array:
    """`sum_k branches[k](given, own[k], fixed)` over the k for which `active[k]`.

    Left to itself, the gradient of a chain of `cond` has each skipped branch make zeros for
    everything that it would have read, to be added up afterwards. Here the gradients so far go
    through the backward `cond`s, as the sum so far goes through those of the forward pass, so that
    a skipped branch neither writes nor adds anything that is large. Branches are run again in the
    backward pass: peak memory is near that of one, not of all. The backward pass is made of what
    JAX can differentiate, so that a gradient has gradients, and products with vectors in either
    mode.

    Args:
      branches: K functions. They must not close over what is differentiated.
      active: `[K]` bool. Under a `jax.vmap` over it all branches are computed, and the skipped ones
        dropped.
      given: arrays that all branches read, floating.
      own: for each branch, arrays that it alone reads, floating.
      fixed: arrays that are not differentiated; their gradient is zero.

    Returns:
      The sum; zeros where nothing is active.
    """

    def run(active: Array, given: Any, own: Sequence[Any], fixed: Any) -> Array:
        shape = jax.eval_shape(branches[0], given, own[0], fixed)
        out = jnp.zeros(shape.shape, shape.dtype)
        for k, branch in enumerate(branches):

            def taken(out: Array, *arguments: Any, branch: Branch = branch) -> Array:
                # Without the checkpoint, a branch that is not taken still writes residuals, of
                # zeros, where this is differentiated as a part of a gradient.
                return out + jax.checkpoint(branch)(*arguments)

            out = jax.lax.cond(active[k], taken, lambda out, *_: out, out, given, own[k], fixed)
        return out

    def backward(kept: Any, cotangent: Array) -> Any:
        active, given, own, fixed = kept
        of_given, of_own = jax.tree.map(jnp.zeros_like, given), []
        for k, branch in enumerate(branches):

            def taken(
                so_far: Any,
                given: Any,
                mine: Any,
                fixed: Any,
                cotangent: Array,
                branch: Branch = branch,
            ) -> Any:
                _, pull = jax.vjp(lambda given, mine: branch(given, mine, fixed), given, mine)
                more, of_mine = pull(cotangent)
                return jax.tree.map(jnp.add, so_far, more), of_mine

            def skipped(so_far: Any, given: Any, mine: Any, *_: Any) -> Any:
                return so_far, jax.tree.map(jnp.zeros_like, mine)

            of_given, of_mine = jax.lax.cond(
                active[k], jax.checkpoint(taken), skipped, of_given, given, own[k], fixed, cotangent
            )
            of_own.append(of_mine)
        return None, of_given, of_own, None

    total = jax.custom_vjp(run)
    total.defvjp(lambda *arguments: (run(*arguments), arguments), backward)
    return total(active, given, list(own), fixed)
