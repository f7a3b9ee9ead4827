"""Linear recurrence with one decay for each token and head, by the first form that applies.

They are a kernel for TPUs and `decay_scan`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.kernels.chunked import TILE
from dartformer.kernels.decay_scan import decay_scan
from dartformer.kernels.target import Target, here


def has_kernel(target: Target | None) -> bool:
    """Whether there is a kernel for a device. It has first derivatives alone."""
    return (target or here()).platform == "tpu"


def decay_attention(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    kernel: str = "auto",
    causal: bool = True,
    valid: Array | None = None,
    scale: float = 1.0,
    write: Array | None = None,
    dtype: DTypeLike | None = None,
    target: Target | None = None,
) -> Array:
    """`decay_scan`, with its arguments and its result.

    Args:
      kernel: "auto" takes that of `recurrence_pallas` on a TPU, above 256 tokens, where it applies.
        Any other name does not: programs that take more than first derivatives have one.
    """
    target = target or here()
    function: Callable[..., Array] = decay_scan
    if kernel == "auto" and v.shape[1] > TILE and has_kernel(target):
        # Imported here, so that Pallas is loaded only where it is used.
        from dartformer.kernels.chunk_passes import refusal
        from dartformer.kernels.recurrence_pallas import decay_recurrence

        heads, width, depth = *q.shape[2:], v.shape[3]
        if not refusal(jnp.result_type(q, k, v), heads, width, depth, target):
            function = decay_recurrence
    return function(
        q,
        k,
        v,
        log_decay,
        causal=causal,
        valid=valid,
        scale=scale,
        write=write,
        dtype=dtype,
        target=target,
    )
