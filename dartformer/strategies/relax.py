"""From alphas to a mixture: points on the simplex for each layer and head."""

import jax
import jax.numpy as jnp
from jax import Array


def softmax(alphas: Array, mixture_shape: tuple[int, int, int]) -> Array:
    """softmax over K, broadcast from `[1 or L, 1 or H, K]` to `[L, H, K]` (DARTS, arXiv 1806.09055, eq. 2)."""
    return jnp.broadcast_to(jax.nn.softmax(alphas, -1), mixture_shape)
