"""Softmax attention over all keys by the first of an ordered choice of kernels that can: cudnn,
chunked, dense.

`cudnn` has been compiled and run on no GPU by this project: its choice, its masks and its
derivatives are tested on a CPU, with XLA's form of the same function in its place."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.errors import InputError, unknown
from dartformer.kernels.chunked import TILE, chunked_attention
from dartformer.kernels.softmax import softmax_attention

KERNELS = ("auto", "cudnn", "chunked", "dense")
"""`auto` takes the first of the others that can; what is named must be possible."""


def cudnn_refusal(
    dtype: Any,
    head_dim: int,
    *,
    slopes: bool = False,
    dropout: float = 0.0,
    device: jax.Device | None = None,
) -> str:
    """Why cuDNN's flash attention cannot be taken on `device` (None: the first one), or "" where it
    can.

    It is that of `jax.nn.dot_product_attention`, whose conditions these are.
    """
    device = jax.devices()[0] if device is None else device
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return f"it needs a CUDA GPU, and this is {device.device_kind}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16, got {jnp.dtype(dtype).name}"
    limit = 256 if float(device.compute_capability) >= 9 else 128
    if head_dim % 8 or head_dim > limit:
        return f"it needs a head width that is a multiple of 8 and at most {limit}, got {head_dim}"
    if slopes:
        return "it cannot take ALiBi without an array of N x N"
    return "it has no attention dropout" if dropout else ""


def choose(
    kernel: str,
    dtype: Any,
    head_dim: int,
    length: int,
    *,
    slopes: bool = False,
    dropout: float = 0.0,
    device: jax.Device | None = None,
) -> str:
    """The kernel that is taken: "cudnn", "chunked" or "dense". Known from sizes alone, before
    anything runs.

    Raises:
      InputError: `kernel` is none of `KERNELS`, or cannot be; with the reason.
    """
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    if kernel in ("chunked", "dense"):
        return kernel
    reason = cudnn_refusal(dtype, head_dim, slopes=slopes, dropout=dropout, device=device)
    if not reason:
        return "cudnn"
    if kernel == "cudnn":
        raise InputError(f"kernel 'cudnn' cannot be taken: {reason}; use 'auto'.")
    return without_cudnn("auto", length)


def without_cudnn(kernel: str, length: int) -> str:
    """What `auto` takes where cuDNN is not to be asked, as in an export for all platforms; others
    stay."""
    if kernel == "auto":
        return "chunked" if length > TILE else "dense"
    return kernel


def full_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    kernel: str = "auto",
    causal: bool = False,
    valid: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """`softmax_attention`, with its arguments and its result, by the kernel that `choose` names.

    Rows of invalid queries are zero by "cudnn", and like any other by the rest.
    """
    dtype = q.dtype if q.dtype == k.dtype == v.dtype else jnp.result_type(q, k, v)
    taken = choose(
        kernel, dtype, q.shape[-1], q.shape[1], slopes=slopes is not None, dropout=dropout
    )
    if taken == "cudnn":
        return cudnn_attention(
            q.astype(dtype), k.astype(dtype), v.astype(dtype), causal=causal, valid=valid
        )
    function = chunked_attention if taken == "chunked" else softmax_attention
    return function(q, k, v, causal=causal, valid=valid, slopes=slopes, dropout=dropout, key=key)


def cudnn_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    valid: Array | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """Full attention by cuDNN, with exact derivatives of every order: those after the first by
    `chunked_attention`.

    A mask would cost cuDNN an array of N x N, but lengths do not: valid tokens are moved to the
    front, in order.

    Args:
      q, k, v: `[B, N, H, D]`, of one dtype.
      causal, valid: as in `softmax_attention`.
      implementation: of `jax.nn.dot_product_attention`.

    Returns:
      `[B, N, H, D]`, zero where not valid.
    """
    if valid is None:

        def whole(q: Array, k: Array, v: Array, lengths: Array) -> Array:
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=causal, implementation=implementation
            )

        def by_definition(q: Array, k: Array, v: Array, lengths: Array) -> Array:
            return chunked_attention(q, k, v, causal=causal)

        return fused(whole, by_definition)(q, k, v, jnp.zeros(0, jnp.int32))

    def front(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation=implementation
        )

    def front_by_definition(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        return chunked_attention(
            q, k, v, causal=causal, valid=jnp.arange(k.shape[1]) < lengths[:, None]
        )

    order = jnp.argsort(~valid, axis=1, stable=True)
    there = valid[:, :, None, None]
    q, k, v = (
        jnp.take_along_axis(jnp.where(there, x, 0), order[:, :, None, None], axis=1)
        for x in (q, k, v)
    )
    # No length is zero, of which cuDNN promises nothing: such an example is zeroed below, and its
    # gradients with it.
    lengths = jnp.maximum(valid.sum(1, dtype=jnp.int32), 1)
    out = fused(front, front_by_definition)(q, k, v, lengths)
    return jnp.where(
        there, jnp.take_along_axis(out, jnp.argsort(order, axis=1)[:, :, None, None], axis=1), 0
    )


Function = Callable[[Array, Array, Array, Array], Array]
"""(q, k, v, lengths) to the output."""


def fused(fast: Function, definition: Function) -> Function:
    """`fast` and its gradient, with the derivatives of both taken from `definition`.

    For kernels that can be differentiated backwards and once only: exact second-order search then
    needs no choice of another kernel, and first-order search pays for none."""

    @jax.custom_jvp
    def forward(q: Array, k: Array, v: Array, lengths: Array) -> tuple[Array, Any]:
        return jax.vjp(lambda q, k, v: fast(q, k, v, lengths), q, k, v)

    @forward.defjvp
    def forward_jvp(primals: Any, tangents: Any) -> Any:
        q, k, v, lengths = primals
        out = forward(q, k, v, lengths)
        tangent = jax.jvp(lambda q, k, v: definition(q, k, v, lengths), (q, k, v), tangents[:3])[1]
        return out, (tangent, jax.tree.map(_no_tangent, out[1]))

    @jax.custom_jvp
    def backward(pull: Any, q: Array, k: Array, v: Array, lengths: Array, cotangent: Array) -> Any:
        return pull(cotangent)

    @backward.defjvp
    def backward_jvp(primals: Any, tangents: Any) -> Any:
        q, k, v, lengths, cotangent = primals[1:]

        def slow(q: Array, k: Array, v: Array, cotangent: Array) -> Any:
            return jax.vjp(lambda q, k, v: definition(q, k, v, lengths), q, k, v)[1](cotangent)

        tangent = jax.jvp(slow, (q, k, v, cotangent), (*tangents[1:4], tangents[5]))[1]
        return backward(*primals), tangent

    @jax.custom_vjp
    def function(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        return fast(q, k, v, lengths)

    def first(q: Array, k: Array, v: Array, lengths: Array) -> Any:
        out, pull = forward(q, k, v, lengths)
        return out, (pull, q, k, v, lengths)

    def second(kept: Any, cotangent: Array) -> Any:
        return (*backward(*kept, cotangent), None)

    function.defvjp(first, second)
    return function


def _no_tangent(x: Array) -> Any:
    """The zero tangent of what `backward` does not look at where it is differentiated."""
    return (
        jnp.zeros_like(x)
        if jnp.issubdtype(x.dtype, jnp.inexact)
        else np.zeros(x.shape, jax.dtypes.float0)
    )
