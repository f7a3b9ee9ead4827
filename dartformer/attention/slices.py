"""A few heads at a time: the same output, from a fraction of the memory.

What a softmax over blocks or buckets keeps for its gradient is many times its inputs. Heads do not
depend on one another, so they are computed one after another, and again in the backward pass.
"""

import dataclasses
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.attention.base import Inputs, Params
from dartformer.kernels.target import Target, here

LEAST = 2**20
"""Numbers of q in the heads that a GPU or a TPU computes at once, at least.

Fewer would not fill it.
"""


class Run(Protocol):
    """An attention of some heads, whose parameters, keys and slopes are theirs alone."""

    def __call__(self, params: Params, inputs: Inputs, key: Array | None) -> Array: ...


class _Slice(NamedTuple):
    """What a slice of the heads has for itself, as in `Inputs`."""

    params: Params
    q: Array
    k: Array
    v: Array
    head_keys: Array | None
    slopes: Array | None
    key: Array | None


def slices(inputs: Inputs, *, on_cpu: int | None) -> int:
    """Into how many slices the heads are cut: a divisor of H, and 1 for small inputs.

    An exported program's batch is a symbol, and its heads are not cut. `on_cpu` is that of
    `by_heads`.
    """
    shape = inputs.q.shape
    for size in shape:
        if not isinstance(size, int):
            return 1
    return _count(math.prod(shape), shape[2], inputs.target or here(), on_cpu)


def _count(numbers: int, heads: int, target: Target, on_cpu: int | None) -> int:
    """`slices` of `heads` heads of which q has so many `numbers`."""
    least = on_cpu
    if target.accelerated:
        least = LEAST
    if least is None:
        return 1
    for count in range(heads, 1, -1):
        if heads % count == 0 and numbers >= count * least:
            return count
    return 1


def by_heads(
    run: Run, params: Params, inputs: Inputs, key: Array | None, *, on_cpu: int | None = None
) -> Array:
    """`run(params, inputs, key)` `[B, N, H, D]`, one slice of the heads after another.

    Each slice draws its own noise from `key`.

    Args:
      run, params, inputs, key: what is computed, and of what.
      on_cpu: numbers of q in the heads that a CPU computes at once, at least; None if it computes
        all at once. Fewer numbers stay in its caches, and are computed twice.
    """
    count = slices(inputs, on_cpu=on_cpu)
    if count == 1:
        return run(params, inputs, key)

    def split(x: Array) -> Array:
        """`[H, ...]` to `[slices, H / slices, ...]`."""
        return x.reshape(count, -1, *x.shape[1:])

    def cut(x: Array) -> Array:
        """`[B, N, H, D]` to `[slices, B, N, H / slices, D]`."""
        return jnp.moveaxis(x.reshape(*x.shape[:2], count, -1, x.shape[3]), 2, 0)

    keys = None
    if key is not None:
        keys = jax.random.split(key, count)
    parts = _Slice(
        jax.tree.map(split, params),
        cut(inputs.q),
        cut(inputs.k),
        cut(inputs.v),
        jax.tree.map(split, inputs.head_keys),
        jax.tree.map(split, inputs.slopes),
        keys,
    )

    def one(part: _Slice) -> Array:
        some = dataclasses.replace(
            inputs,
            q=part.q,
            k=part.k,
            v=part.v,
            head_keys=part.head_keys,
            slopes=part.slopes,
        )
        return run(part.params, some, part.key)

    # A loop, not a `vmap`: what one slice keeps is in memory at a time.
    out = jax.lax.map(jax.checkpoint(one, prevent_cse=False), parts)
    out = jnp.moveaxis(out, 0, 2)  # [B, N, slices, H / slices, D]
    return out.reshape(*out.shape[:2], -1, out.shape[-1])
