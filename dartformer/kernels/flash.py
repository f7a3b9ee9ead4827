"""Softmax attention over all keys, by the first kernel that applies: cudnn, chunked, dense.

This project has not compiled or run `cudnn` on a GPU. Its choice, its masks and its derivatives are
tested on a CPU, with XLA's form of the same function in its place.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dartformer.errors import InputError, unknown
from dartformer.kernels.chunked import TILE, chunked_attention
from dartformer.kernels.softmax import softmax_attention

KERNELS = ("auto", "cudnn", "chunked", "dense")
"""`auto` takes the first of the others that applies. A kernel that is named must apply."""


def cudnn_refusal(
    dtype: DTypeLike,
    head_dim: int,
    *,
    slopes: bool = False,
    dropout: float = 0.0,
    device: jax.Device | None = None,
) -> str:
    """Why cuDNN's flash attention does not work on `device`, or "" where it does.

    These are the conditions of `jax.nn.dot_product_attention`, which calls it.

    Args:
      device: None for the first one.
    """
    if device is None:
        device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return f"it needs a CUDA GPU, and this is {device.device_kind}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16, got {jnp.dtype(dtype).name}"
    limit = 128
    if float(device.compute_capability) >= 9:  # Hopper and later
        limit = 256
    if head_dim % 8 or head_dim > limit:
        return f"it needs a head width that is a multiple of 8 and at most {limit}, got {head_dim}"
    if slopes:
        return "it supports ALiBi only with an array of N x N"
    if dropout:
        return "it has no attention dropout"
    return ""


def choose(
    kernel: str,
    dtype: DTypeLike,
    head_dim: int,
    length: int,
    *,
    slopes: bool = False,
    dropout: float = 0.0,
    device: jax.Device | None = None,
) -> str:
    """The kernel in use: "cudnn", "chunked" or "dense", from sizes alone, before anything runs.

    Raises:
      InputError: `kernel` is not one of `KERNELS`, or does not work here; with the reason.
    """
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    if kernel in ("chunked", "dense"):
        return kernel
    reason = cudnn_refusal(dtype, head_dim, slopes=slopes, dropout=dropout, device=device)
    if not reason:
        return "cudnn"
    if kernel == "cudnn":
        raise InputError(f"kernel 'cudnn' does not work here because {reason}. Use 'auto'.")
    return without_cudnn("auto", length)


def without_cudnn(kernel: str, length: int) -> str:
    """What `auto` takes without cuDNN, as in an export for all platforms; other kernels stay."""
    if kernel != "auto":
        return kernel
    if length > TILE:
        return "chunked"
    return "dense"


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

    Rows of invalid queries are zero by "cudnn", and like any other row by the other kernels.
    """
    dtype = jnp.result_type(q, k, v)
    length, width = q.shape[1], q.shape[-1]
    choice = choose(kernel, dtype, width, length, slopes=slopes is not None, dropout=dropout)
    if choice == "cudnn":
        q, k, v = q.astype(dtype), k.astype(dtype), v.astype(dtype)
        return cudnn_attention(q, k, v, causal=causal, valid=valid)
    function = softmax_attention
    if choice == "chunked":
        function = chunked_attention
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
    """Full attention by cuDNN, with exact derivatives of every order.

    Those after the first are by `chunked_attention`. A mask would cost cuDNN an array of N x N, but
    lengths do not: valid tokens are moved to the front, in order.

    Args:
      q, k, v: `[B, N, H, D]`, of one dtype.
      causal, valid: as in `softmax_attention`.
      implementation: of `jax.nn.dot_product_attention`.

    Returns:
      `[B, N, H, D]`, zero where not valid.
    """

    def fast(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        count = None
        if valid is not None:
            count = lengths
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, key_value_seq_lengths=count, implementation=implementation
        )

    def definition(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        mask = None
        if valid is not None:
            mask = jnp.arange(k.shape[1]) < lengths[:, None]
        return chunked_attention(q, k, v, causal=causal, valid=mask)

    function = fused(fast, definition)
    if valid is None:
        return function(q, k, v, jnp.zeros(0, jnp.int32))

    # Stable, so that valid tokens keep their order, which a causal mask needs.
    order = jnp.argsort(~valid, axis=1, stable=True)[:, :, None, None]  # [B, N, 1, 1]
    mask = valid[:, :, None, None]
    q = jnp.take_along_axis(jnp.where(mask, q, 0), order, axis=1)
    k = jnp.take_along_axis(jnp.where(mask, k, 0), order, axis=1)
    v = jnp.take_along_axis(jnp.where(mask, v, 0), order, axis=1)
    # No length is zero, for which cuDNN promises nothing: such an example is zeroed below, and its
    # gradients with it.
    lengths = jnp.maximum(valid.sum(1, dtype=jnp.int32), 1)
    out = function(q, k, v, lengths)
    back = jnp.argsort(order, axis=1)
    return jnp.where(mask, jnp.take_along_axis(out, back, axis=1), 0)


Function = Callable[[Array, Array, Array, Array], Array]
"""(q, k, v, lengths) to the output."""

Arrays = tuple[Array, ...]

Pull = Callable[[Array], Arrays]
"""A cotangent of the output to the gradients of q, k and v; a pytree of residuals, as JAX makes it."""

Residuals = tuple[Pull, Array, Array, Array, Array]
"""What the backward pass reads: `Pull`, and q, k, v and lengths for derivatives of its own."""


def fused(fast: Function, definition: Function) -> Function:
    """`fast` and its gradient, with the derivatives of both taken from `definition`.

    For kernels that can be differentiated backwards and once only. Exact second-order search then
    works with the same kernel, and first-order search pays nothing for it.
    """

    @jax.custom_jvp
    def forward(q: Array, k: Array, v: Array, lengths: Array) -> tuple[Array, Pull]:
        return jax.vjp(lambda q, k, v: fast(q, k, v, lengths), q, k, v)

    @forward.defjvp
    def forward_jvp(primals: Arrays, tangents: Arrays) -> Any:
        q, k, v, lengths = primals
        out = forward(q, k, v, lengths)
        tangent = jax.jvp(lambda q, k, v: definition(q, k, v, lengths), (q, k, v), tangents[:3])[1]
        # `backward` has a rule of its own, and takes no derivative by what `pull` keeps.
        return out, (tangent, jax.tree.map(_no_tangent, out[1]))

    @jax.custom_jvp
    def backward(
        pull: Pull, q: Array, k: Array, v: Array, lengths: Array, cotangent: Array
    ) -> Arrays:
        return pull(cotangent)

    @backward.defjvp
    def backward_jvp(primals: Any, tangents: Any) -> tuple[Arrays, Arrays]:
        q, k, v, lengths, cotangent = primals[1:]

        def gradient(q: Array, k: Array, v: Array, cotangent: Array) -> Arrays:
            _, pull = jax.vjp(lambda q, k, v: definition(q, k, v, lengths), q, k, v)
            return pull(cotangent)

        directions = (*tangents[1:4], tangents[5])
        tangent = jax.jvp(gradient, (q, k, v, cotangent), directions)[1]
        return backward(*primals), tangent

    @jax.custom_vjp
    def function(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        return fast(q, k, v, lengths)

    def forward_rule(q: Array, k: Array, v: Array, lengths: Array) -> tuple[Array, Residuals]:
        out, pull = forward(q, k, v, lengths)
        return out, (pull, q, k, v, lengths)

    def backward_rule(residuals: Residuals, cotangent: Array) -> tuple[Array | None, ...]:
        lengths_gradient = None  # integers
        return (*backward(*residuals, cotangent), lengths_gradient)

    function.defvjp(forward_rule, backward_rule)
    return function


def _no_tangent(x: Array) -> Array | np.ndarray:
    """The zero tangent of a residual."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)  # as JAX wants it for integers
