"""The properties of attentions that can be run token by token."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dartformer.attention.base import Cache, Decoder, Inputs, Params, Shape
from dartformer.attention.conformance.case import (
    Case,
    Failed,
    NotApplicable,
    below,
    gap,
    quick,
)
from dartformer.errors import InputError

SINGLE = 10**6
"""In a schedule: all further tokens, one by one."""


def _decoder(case: Case) -> Decoder:
    """The attention; raises where it does not decode, or says so and does not."""
    attention = case.attention
    if not attention.traits.decodes:
        raise NotApplicable("traits.decodes is False")
    if not attention.traits.causal:
        raise Failed("traits.decodes is True, but traits.causal is False")
    if not isinstance(attention, Decoder):
        raise Failed("traits.decodes is True, so it needs init_cache, prefill and step")
    return attention


def _part(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The tokens from `start` to `stop`."""
    arrays: dict[str, Any] = {}
    for name in ("q", "k", "v", "x", "valid"):
        array = getattr(inputs, name)
        if array is not None:
            array = array[:, start:stop]
        arrays[name] = array
    return dataclasses.replace(inputs, **arrays)


def _shape(case: Case, inputs: Inputs, length: int) -> Shape:
    batch, _, heads, width = inputs.q.shape
    return Shape(
        length, heads, width, case.shape.model_dim, batch=batch, kv_heads=inputs.v.shape[2]
    )


def _decoded(
    case: Case, params: Params, inputs: Inputs, schedule: Sequence[int], prefill: bool
) -> tuple[jax.Array, Cache]:
    """The outputs of tokens that arrive as `schedule` says, and the last cache.

    Args:
      schedule: how many tokens at a time.
      prefill: whether the first of them are a prompt.
    """
    attention = _decoder(case)
    length = inputs.q.shape[1]
    cache = attention.init_cache(_shape(case, inputs, length), inputs.v.dtype, inputs.head_keys)
    counts = jnp.cumsum(jnp.asarray(inputs.mask), axis=1, dtype=jnp.int32)
    counts = jnp.pad(counts, ((0, 0), (1, 0)))  # [B, N + 1], tokens before each
    outputs = []
    first = 0
    for number in schedule:
        if number == SINGLE:
            break
        part = _part(inputs, first, first + number)
        if prefill and first == 0:
            out, cache = attention.prefill(params, part, cache)
        else:
            part = dataclasses.replace(part, start=counts[:, first])
            out, cache = attention.step(params, part, cache)
        outputs.append(out)
        first += number

    def step(cache: Cache, i: jax.Array) -> tuple[Cache, jax.Array]:
        token = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, i, 1, axis=1),
            dataclasses.replace(inputs, head_keys=None, slopes=None),
        )
        token = dataclasses.replace(
            token, head_keys=inputs.head_keys, slopes=inputs.slopes, start=counts[:, i]
        )
        out, cache = attention.step(params, token, cache)
        return cache, out[:, 0]

    if first < length:
        # In a loop, so that it is compiled once; it also refuses a cache that changes its shape.
        cache, rest = jax.lax.scan(step, cache, jnp.arange(first, length))
        outputs.append(rest.swapaxes(0, 1))
    return jnp.concatenate(outputs, axis=1), cache


Schedules = dict[str, tuple[tuple[int, ...], bool]]
"""How the tokens may arrive, and whether the first are a prompt."""


def schedules(case: Case) -> Schedules:
    """Those that every type must agree on; `steps_in_float32` goes on from a longer prompt."""
    return {
        "token by token": ((SINGLE,), False),
        "after a prompt of 1, by 3, 8 and the rest": ((1, 3, 8, case.length - 12), True),
    }


def more_schedules(case: Case) -> Schedules:
    """Others, which seldom show what those do not."""
    half = case.length // 2
    return {
        f"after a prompt of {half}, by 5 and 1": ((half, 5, SINGLE), True),
        f"after a prompt of {case.length - 1}": ((case.length - 1, 1), True),
        "by 2": ((2,) * (case.length // 2) + (SINGLE,), False),
    }


def steps_agree(case: Case, ways: Callable[[Case], Schedules] = schedules) -> str:
    """A step that computes something else than the parallel form, after some prompt or chunk.

    Examples have padding at the end, at the start and inside, which must take no place.
    """
    _decoder(case)
    inputs = dataclasses.replace(case.inputs, x=_read_x(case))
    expected = np.asarray(case.alone(case.params, inputs))
    worst = 0.0
    for name, (schedule, prefill) in ways(case).items():
        run = quick(lambda p, i, s=schedule, f=prefill: _decoded(case, p, i, s, f)[0])
        out = np.asarray(run(case.params, inputs))
        if (out[~case.valid] != 0).any():
            raise Failed(f"an output at padding is not 0 ({name})")
        difference = gap(out, expected)
        below(difference, case.rounding, f"{name} it differs from the parallel form by")
        worst = max(worst, difference)
    return f"{len(ways(case))} ways, differs from the parallel form by {worst:.2g}"


def steps_agree_with_slopes(case: Case) -> str:
    """ALiBi's distances counted from the chunk, or with padding, when it decodes."""
    _decoder(case)
    if "alibi" not in case.attention.traits.positions:
        raise NotApplicable("traits.positions has no 'alibi'")
    slopes = jnp.asarray(2.0 ** -np.arange(case.heads))
    inputs = dataclasses.replace(case.inputs, x=_read_x(case), slopes=slopes)
    expected = case.alone(case.params, inputs)
    run = quick(lambda p, i: _decoded(case, p, i, (7, case.length - 7), True)[0])
    return below(
        gap(run(case.params, inputs), expected), case.rounding, "differs from the parallel form by"
    )


def steps_in_float32(case: Case) -> str:
    """Steps that add up rounding errors, or a bfloat16 cache whose sums are in bfloat16 too."""
    _decoder(case)
    text = []
    with jax.enable_x64(False):
        for dtype, limit, chunks in ((jnp.float32, 1e-5, (4,)), (jnp.bfloat16, 6e-3, ())):
            params = _cast(case.params, jnp.float32)
            inputs = _cast(dataclasses.replace(case.inputs, x=_read_x(case)), dtype)
            wide = _cast(inputs, jnp.float32)
            exact = case.alone(params, wide)
            schedule = (9, *chunks, SINGLE)
            run = quick(lambda p, i, s=schedule: _decoded(case, p, i, s, True)[0])
            out = run(params, inputs)
            expected = np.asarray(exact, np.float64)
            if out.dtype != dtype:
                raise Failed(f"v is {jnp.dtype(dtype).name}, but the output of a step {out.dtype}")
            name = jnp.dtype(dtype).name
            out = np.asarray(out, np.float64)
            worst = 0.0
            # Token by token: the first outputs are the largest, and would hide the last ones.
            for t in range(case.length):
                worst = max(worst, gap(out[:, t], expected[:, t]))
            text.append(below(worst, limit, f"in {name} it differs by"))
    return "; ".join(text)


def cache_bytes(case: Case) -> str:
    """A cache of another size than `cost` prices, or keys kept once for each head that shares them."""
    attention = _decoder(case)
    keys = case.keys()
    sizes = []
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        for batch, length, kept in ((1, case.length, 0), (3, 24, 0), (2, case.length - 1, 1)):
            shape = dataclasses.replace(
                case.shape,
                batch=batch,
                length=length,
                kv_heads=kept,
                itemsize=jnp.dtype(dtype).itemsize,
            )
            cache = jax.eval_shape(lambda s=shape, d=dtype: attention.init_cache(s, d, keys))
            held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
            priced = attention.cost(shape).state_bytes
            if held != priced:
                raise Failed(
                    f"the cache has {held:,} bytes, and cost prices {priced:,.0f} ({shape})"
                )
            sizes.append(held)
    return f"as priced, {min(sizes):,} to {max(sizes):,} bytes"


def shared_keys(case: Case) -> str:
    """Heads that share keys and values, and read those of another head when it decodes."""
    _decoder(case)
    text = []
    for groups in (None, _groups(case.heads)):
        kept = 1
        if groups is not None:
            kept = 2
        inputs = dataclasses.replace(case.inputs, x=_read_x(case))
        few = dataclasses.replace(inputs, k=inputs.k[:, :, :kept], v=inputs.v[:, :, :kept])
        index = np.zeros(case.heads, int)
        if groups is not None:
            few = dataclasses.replace(few, groups=groups)
            index = np.array(groups)
        all_heads = dataclasses.replace(few, k=few.k[:, :, index], v=few.v[:, :, index], groups=())
        expected = case.alone(case.params, all_heads)
        run = quick(lambda p, i: _decoded(case, p, i, (6, case.length - 6), True)[0])
        difference = gap(run(case.params, few), expected)
        text.append(below(difference, case.rounding, f"with {kept} it differs by"))
    return "; ".join(text)


def _groups(heads: int) -> tuple[int, ...]:
    """Two heads of keys, of which all heads but the first read the second."""
    return (0, *(1,) * (heads - 1))


def refuses_another_cache(case: Case) -> str:
    """A cache for another batch or head width, read without an error."""
    attention = _decoder(case)
    inputs = dataclasses.replace(case.inputs, x=_read_x(case))
    token = dataclasses.replace(_part(inputs, 0, 1), start=jnp.zeros(4, jnp.int32))
    shape = _shape(case, inputs, case.length)
    changes = {"batch": shape.batch + 1, "head_dim": shape.head_dim + 2}
    refusals = []
    for name, value in changes.items():
        changed = dataclasses.replace(shape, **{name: value})
        cache = jax.eval_shape(
            lambda s=changed: attention.init_cache(s, inputs.v.dtype, inputs.head_keys)
        )
        if not jax.tree.leaves(cache):
            raise NotApplicable("its cache is empty")
        try:
            jax.eval_shape(attention.step, case.params, token, cache)
        except InputError as error:
            refusals.append(str(error))
            continue
        raise Failed(f"accepts a cache of another {name} (see decoding.accept_cache)")
    return refusals[0]


def _read_x(case: Case) -> Any:
    """x of the inputs, None if it is not read."""
    if "x" in case.reads:
        return case.inputs.x
    return None


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    """Floating arrays of `tree` in `dtype`."""

    def cast(a: Any) -> Any:
        if jnp.issubdtype(a.dtype, jnp.floating):
            return jnp.asarray(a, dtype)
        return a

    return jax.tree.map(cast, tree)


DECODING = (
    steps_agree,
    steps_agree_with_slopes,
    steps_in_float32,
    cache_bytes,
    shared_keys,
    refuses_another_cache,
)
"""All of them, in the order of the report."""
