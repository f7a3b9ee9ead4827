"""Softmax attention over all keys, or a window, by the first kernel that applies.

They are cudnn, splash, chunked and dense. This project has not run `cudnn` on a GPU or `splash` on
a TPU. Their choice, masks and derivatives are tested on a CPU: of the one with XLA's form of the
same function in its place, of the other in an interpreter.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.errors import InputError, unknown
from dartformer.kernels.block_sparse import band_attention
from dartformer.kernels.chunked import TILE, chunked_attention
from dartformer.kernels.fused import Function, fused
from dartformer.kernels.softmax import softmax_attention
from dartformer.kernels.target import Target, here, is_elsewhere

KERNELS = ("auto", "cudnn", "splash", "chunked", "dense")
"""`auto` takes the first of the others that applies. A kernel that is named must apply."""

Implementation = Literal["cudnn", "xla"]

NARROW = 32
"""Head width from which `auto` takes splash attention."""

WIDEST = 256
"""Head width up to which the blocks of splash attention fit a chip's fast memory."""


def cudnn_refusal(
    dtype: DTypeLike,
    head_dim: int,
    *,
    slopes: bool = False,
    dropout: float = 0.0,
    queries: int | None = None,
    keys: int | None = None,
    target: Target | None = None,
) -> str:
    """Why cuDNN's flash attention does not work on `target`, or "" where it does.

    These are the conditions of `jax.nn.dot_product_attention`, which calls it, and of what is made
    of it here. Every length and every `valid` works (see `cudnn_attention`).

    Args:
      queries, keys: how many tokens there are of each; None for as many of both.
      target: the device that the program is made for; None for that of this process.
    """
    target = target or here()
    if not target.capability:
        return f"it needs a CUDA GPU, and this is {target.kind}"
    if target.capability < 8:
        return f"it needs an Ampere GPU or a later one, and this is {target.kind}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16, got {jnp.dtype(dtype).name}"
    limit = 128
    if target.capability >= 9:  # Hopper and later
        limit = 256
    if head_dim % 8 or head_dim > limit:
        return f"it needs a head width that is a multiple of 8 and at most {limit}, got {head_dim}"
    if slopes:
        return "it supports ALiBi only with an array of N x N"
    if dropout:
        return "it has no attention dropout"
    if queries != keys:
        return f"it needs as many queries as keys, got {queries} and {keys}"
    return ""


def splash_refusal(
    dtype: DTypeLike,
    head_dim: int,
    *,
    slopes: bool = False,
    dropout: float = 0.0,
    queries: int | None = None,
    keys: int | None = None,
    target: Target | None = None,
) -> str:
    """Why splash attention does not work on `target`, or "" where it does.

    The arguments are those of `cudnn_refusal`.
    """
    target = target or here()
    if target.platform != "tpu":
        return f"it needs a TPU, and this is {target.kind}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"it needs bfloat16 or float32, got {jnp.dtype(dtype).name}"
    if head_dim > WIDEST:
        return f"it needs a head width of at most {WIDEST}, got {head_dim}"
    if slopes:
        return "it has no ALiBi"
    if dropout:
        return "it has no attention dropout"
    if queries != keys:
        return f"it needs as many queries as keys, got {queries} and {keys}"
    return ""


REFUSALS = {"cudnn": cudnn_refusal, "splash": splash_refusal}
"""Kernels of one kind of device, in the order in which `auto` tries them."""

ABLE = {"cudnn": Target("gpu", "a GPU", 9.0), "splash": Target("tpu", "a TPU")}
"""For each, a device that refuses least."""


def choose(
    kernel: str,
    dtype: DTypeLike,
    head_dim: int,
    length: int,
    *,
    slopes: bool = False,
    dropout: float = 0.0,
    keys: int | None = None,
    order: int = 1,
    target: Target | None = None,
) -> str:
    """The kernel in use, from sizes alone, before anything runs: one of `KERNELS` but "auto".

    Args:
      length: tokens.
      keys: of them, where there are more than queries; None: as many.
      order: how many times it is differentiated. Above 1 another kernel computes what those of
        one device lack, and `auto` takes that one for everything.
      target: the device that the program is made for; None for that of this process, or inside
        `dartformer.kernels.target.elsewhere` for any.

    Raises:
      InputError: `kernel` is not one of `KERNELS`, or does not work here; with the reason.
    """
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    if kernel in ("chunked", "dense"):
        return kernel
    for name, refusal in REFUSALS.items():
        if kernel == "auto" and (order > 1 or not _pays(name, length, head_dim)):
            continue
        if kernel not in ("auto", name):
            continue
        device = target
        if device is None and kernel == name and is_elsewhere():
            device = ABLE[name]
        reason = refusal(
            dtype,
            head_dim,
            slopes=slopes,
            dropout=dropout,
            queries=length,
            keys=keys or length,
            target=device,
        )
        if not reason:
            return name
        if kernel == name:
            raise InputError(f"kernel {name!r} does not work here because {reason}. Use 'auto'.")
    return portable("auto", length)


def _pays(name: str, length: int, head_dim: int) -> bool:
    """Whether `auto` takes a kernel for so many tokens and heads of that width."""
    # Splash attention fills its blocks up, and one product of few tokens is quicker. Narrow heads
    # fill registers of 128 numbers to a small part: of width 8 they take four times the memory of
    # tiles.
    return name != "splash" or (length > TILE and head_dim >= NARROW)


def portable(kernel: str, length: int) -> str:
    """What `auto` takes for every device, as in an export for all platforms; other kernels stay."""
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
    target: Target | None = None,
) -> Array:
    """`softmax_attention`, with its arguments and its result, by the kernel that `choose` names.

    It is for `target`, or for the device of this process.

    Rows of invalid queries are zero by "cudnn" and "splash", and like any other row by the other
    kernels.
    """
    dtype = jnp.result_type(q, k, v)
    choice = choose(
        kernel,
        dtype,
        q.shape[-1],
        q.shape[1],
        slopes=slopes is not None,
        dropout=dropout,
        keys=k.shape[1],
        target=target,
    )
    if choice == "cudnn":
        q, k, v = q.astype(dtype), k.astype(dtype), v.astype(dtype)
        return cudnn_attention(q, k, v, causal=causal, valid=valid, target=target)
    if choice == "splash":
        return _splash(q, k, v, causal=causal, valid=valid)
    function = softmax_attention
    if choice == "chunked":
        function = functools.partial(chunked_attention, target=target)
    return function(q, k, v, causal=causal, valid=valid, slopes=slopes, dropout=dropout, key=key)


def window_by_splash(
    q: Array,
    k: Array,
    v: Array,
    *,
    kernel: str,
    slopes: Array | None,
    dropout: float,
    target: Target | None,
) -> bool:
    """Whether `window_attention` is by splash attention, which computes all heads at once."""
    length, width = q.shape[1], q.shape[-1]
    if kernel != "splash" and not (kernel == "auto" and _pays("splash", length, width)):
        return False
    return not splash_refusal(
        jnp.result_type(q, k, v),
        width,
        slopes=slopes is not None,
        dropout=dropout,
        queries=length,
        keys=k.shape[1],
        target=target,
    )


def window_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    prefix: int = 0,
    kernel: str = "auto",
    causal: bool = False,
    valid: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
    target: Target | None = None,
) -> Array:
    """`band_attention`, with its arguments and its result; by splash attention where that applies.

    `kernel` and `target` are as in `full_attention`; a named kernel that has no windows is passed
    over. Rows of invalid queries are zero by splash attention.
    """
    if window_by_splash(q, k, v, kernel=kernel, slopes=slopes, dropout=dropout, target=target):
        return _splash(q, k, v, causal=causal, window=window, prefix=prefix, valid=valid)
    return band_attention(
        q,
        k,
        v,
        window=window,
        prefix=prefix,
        causal=causal,
        valid=valid,
        slopes=slopes,
        dropout=dropout,
        key=key,
        target=target,
    )


def _splash(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    valid: Array | None,
    window: int | None = None,
    prefix: int = 0,
) -> Array:
    """`splash_attention`."""
    # Imported here, so that Pallas is loaded only where it is used.
    from dartformer.kernels.splash import splash_attention

    return splash_attention(q, k, v, causal=causal, window=window, prefix=prefix, valid=valid)


def cudnn_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    valid: Array | None,
    implementation: Implementation = "cudnn",
    target: Target | None = None,
) -> Array:
    """Full attention by cuDNN, with exact derivatives of every order.

    Those after the first, and those of forward mode, are by `chunked_attention`. A mask would cost
    cuDNN an array of N x N, but lengths do not: valid tokens are moved to the front, in order.

    Args:
      q, k, v: `[B, N, H, D]`, of one dtype.
      causal, valid: as in `softmax_attention`.
      implementation: of `jax.nn.dot_product_attention`.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]`, zero where not valid.
    """
    batch, length = q.shape[:2]
    lengths = jnp.zeros(0, jnp.int32)
    masked = valid is not None
    if valid is not None:
        # Stable, so that valid tokens keep their order, which a causal mask needs.
        order = jnp.argsort(~valid, axis=1, stable=True)[:, :, None, None]  # [B, N, 1, 1]
        mask = valid[:, :, None, None]
        q = jnp.take_along_axis(jnp.where(mask, q, 0), order, axis=1)
        k = jnp.take_along_axis(jnp.where(mask, k, 0), order, axis=1)
        v = jnp.take_along_axis(jnp.where(mask, v, 0), order, axis=1)
        # No length is zero, for which cuDNN promises nothing: such an example is zeroed below, and
        # its gradients with it.
        lengths = jnp.maximum(valid.sum(1, dtype=jnp.int32), 1)
    if length % 2:
        # JAX refuses the gradient at odd lengths. One more token comes last, where causal queries
        # do not see it, and others do not by the lengths.
        q, k, v = _one_more(q), _one_more(k), _one_more(v)
        if not causal and not masked:
            lengths, masked = jnp.full(batch, length, jnp.int32), True
    out = _by_lengths(causal, masked, implementation, target)(q, k, v, lengths)[:, :length]
    if valid is None:
        return out
    back = jnp.argsort(order, axis=1)
    return jnp.where(mask, jnp.take_along_axis(out, back, axis=1), 0)


def _one_more(x: Array) -> Array:
    """`[B, N, H, D]` with a token of zeros behind the others."""
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))


# Kept, so that equal calls are the same function to JAX, which traces it only once.
@functools.cache
def _by_lengths(
    causal: bool, masked: bool, implementation: Implementation, target: Target | None
) -> Function:
    """Attention to the first `lengths` `[B]` keys, or to all if not `masked`."""

    def fast(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        count = None
        if masked:
            count = lengths
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, key_value_seq_lengths=count, implementation=implementation
        )

    def definition(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        mask = None
        if masked:
            mask = jnp.arange(k.shape[1]) < lengths[:, None]
        return chunked_attention(q, k, v, causal=causal, valid=mask, target=target)

    return fused(fast, definition)
