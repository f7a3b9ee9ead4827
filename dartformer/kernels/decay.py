"""Linear recurrences with decays, each by the first form that applies.

They are a Pallas kernel for TPUs, and chunks in plain JAX.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.kernels.chunked import TILE
from dartformer.kernels.decay_scan import decay_scan
from dartformer.kernels.delta_scan import delta_scan
from dartformer.kernels.gated_scan import gated_scan
from dartformer.kernels.target import Target, here

Refusal = Callable[[DTypeLike, int, int, int, Target], str]


def has_kernel(target: Target | None) -> bool:
    """Whether there are kernels for a device. They have first derivatives alone."""
    return (target or here()).platform == "tpu"


def _takes_kernel(
    kernel: str, q: Array, k: Array, v: Array, target: Target, refusal: Refusal
) -> bool:
    """Whether `refusal` has nothing against a kernel that `kernel` may take."""
    if kernel != "auto" or v.shape[1] <= TILE or not has_kernel(target):
        return False
    heads, width = q.shape[2:]
    return not refusal(jnp.result_type(q, k, v), heads, width, v.shape[3], target)


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
    if has_kernel(target):
        # Imported here, so that Pallas is loaded only where it is used.
        from dartformer.kernels.chunk_passes import refusal
        from dartformer.kernels.recurrence_pallas import decay_recurrence

        if _takes_kernel(kernel, q, k, v, target, refusal):
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


def gated_attention(
    q: Array,
    k: Array,
    v: Array,
    logits: Array,
    *,
    normaliser: float,
    kernel: str = "auto",
    causal: bool = True,
    valid: Array | None = None,
    scale: float = 1.0,
    target: Target | None = None,
) -> Array:
    """`gated_scan`, with its arguments and its result.

    Args:
      logits: of gates, `[B, N, H, M]`.
      normaliser: the log-decays are log_sigmoid(logits) / normaliser.
      kernel: as in `decay_attention`; the kernel is that of `gated_pallas`.
    """
    target = target or here()
    if has_kernel(target):
        from dartformer.kernels.gated_pallas import gated_recurrence, refusal

        if _takes_kernel(kernel, q, k, v, target, refusal):
            return gated_recurrence(
                q,
                k,
                v,
                logits,
                normaliser=normaliser,
                causal=causal,
                valid=valid,
                scale=scale,
                target=target,
            )
    log_decay = jax.nn.log_sigmoid(logits) / normaliser
    return gated_scan(q, k, v, log_decay, causal=causal, valid=valid, scale=scale, target=target)


def delta_attention(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    kernel: str = "auto",
    causal: bool = True,
    valid: Array | None = None,
    target: Target | None = None,
) -> Array:
    """`delta_scan` of unit vectors, with its arguments and its result.

    Args:
      kernel: as in `decay_attention`; the kernel is that of `delta_pallas`.
    """
    target = target or here()
    function: Callable[..., Array] = functools.partial(delta_scan, unit=True)
    if has_kernel(target):
        from dartformer.kernels.delta_pallas import delta_recurrence, refusal

        if _takes_kernel(kernel, q, k, v, target, refusal):
            function = delta_recurrence
    return function(q, k, v, log_decay, beta, causal=causal, valid=valid, target=target)
