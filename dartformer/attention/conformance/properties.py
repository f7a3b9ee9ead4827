"""The properties every attention must have: one function each, which says what mistake it catches.

A property returns a sentence with its numbers, raises `Failed`, or raises `NotApplicable` with the
reason. They run with float64 enabled, for tight tolerances; those about lower precision switch it
off.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.typing import DTypeLike

from dartformer import spec
from dartformer.attention.base import DROPOUTS, POSITIONS, Attention, Inputs, Params, Shape, Traits
from dartformer.attention.conformance.case import (
    EMPTY,
    EXACT,
    HOLES,
    RIGHT,
    SHORT,
    Case,
    Failed,
    Gradients,
    NotApplicable,
    arrays,
    below,
    finite,
    gap,
    primitives,
    quick,
    with_arrays,
)
from dartformer.attention.conformance.decoding import DECODING
from dartformer.attention.conformance.process import output_elsewhere
from dartformer.errors import InputError

LIVE = 1e-10
"""A gradient smaller than this part of the largest one is rounding.

Terms that cancel exactly leave as much.
"""


def frozen_dataclass(case: Case) -> str:
    """A mutable or unhashable type: as a static argument of jit it would recompile or go stale."""
    attention = case.attention
    if not dataclasses.is_dataclass(attention) or not isinstance(attention, Attention):
        raise Failed("must be a dataclass with traits, init, __call__, weights and cost")
    if not attention.__dataclass_params__.frozen:
        raise Failed("must be decorated with @dataclass(frozen=True)")
    copy = dataclasses.replace(attention)
    traits = attention.traits
    if not isinstance(traits, Traits):
        raise Failed(f"traits must be a Traits, got {type(traits).__name__}")
    if copy != attention or hash(copy) != hash(attention):
        raise Failed("a copy with the same fields must be equal and have the same hash")
    if not traits.positions <= POSITIONS:
        raise Failed(
            f"traits.positions must be among {sorted(POSITIONS)}, got {sorted(traits.positions)}"
        )
    if traits.dropout not in DROPOUTS:
        raise Failed(f"traits.dropout must be one of {DROPOUTS}, got {traits.dropout!r}")
    return "frozen, hashable, equal to its copy"


def text_round_trip(case: Case, table: Mapping[str, type] | None = None) -> str:
    """A field that text cannot carry: the genotype on disk would name another attention."""
    if table is None or type(case.attention) not in table.values():
        raise NotApplicable("its class is not registered")
    text = spec.to_text(case.attention, table)
    parsed = spec.parse(text, table)
    if parsed != case.attention:
        raise Failed(f"{text!r} reads back as {parsed!r}")
    return text


def parameters_lead_with_heads(case: Case) -> str:
    """Parameters that cannot be cut by head, or heads that all begin alike."""
    leaves = jax.tree.leaves(case.initial)
    if not leaves:
        raise NotApplicable("no parameters")
    for p in leaves:
        if p.ndim == 0 or p.shape[0] != case.heads:
            raise Failed(
                f"a parameter has shape {list(p.shape)}, but its first axis must be the "
                f"{case.heads} heads"
            )
        varies = p.dtype.kind == "f" and np.ptp(p) > 0
        if varies and (p[0] == p[1]).all():
            raise Failed(
                f"a parameter of shape {list(p.shape)} begins the same in two heads: split the key"
            )
    return f"{len(leaves)} arrays"


def shape_and_dtype(case: Case) -> str:
    """An output of another shape or dtype than v's, in some mode, precision or without an input."""
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        for causal in case.modes:
            for train in (False, True):
                with jax.enable_x64(dtype == jnp.float64):
                    _check_shape_and_dtype(case, dtype, causal, train)
    return "as v in bfloat16, float32, float64"


def _check_shape_and_dtype(case: Case, dtype: type, causal: bool, train: bool) -> None:
    """One of `shape_and_dtype`: evaluation without a mask, or training with one."""
    inputs = _cast(case.part(slice(2), slice(None), valid=train), dtype)
    # Parameters stay in float32 where activations are in lower precision.
    params = _cast(case.params, jnp.promote_types(dtype, jnp.float32))

    def run(params: Params, inputs: Inputs) -> jax.Array:
        key = None
        if train:
            key = jax.random.key(0)
        return case.attention(params, inputs, causal=causal, train=train, key=key)

    out = jax.eval_shape(run, params, inputs)
    if out.shape != inputs.v.shape or out.dtype != dtype:
        raise Failed(
            f"v is {dtype.__name__}{list(inputs.v.shape)}, but the output is "
            f"{out.dtype}{list(out.shape)} (causal={causal}, train={train})"
        )


def definition(case: Case) -> str:
    """A fast path that computes something else than the equation, such as a strided window."""
    worst = 0.0
    for causal in case.modes:
        worst = max(worst, gap(case.results[causal][0], case.definitions[causal][0]))
    name = "reference()"
    if case.attention.traits.matrix:
        name = "weights @ v"
    return below(worst, case.tolerance, f"differs from {name} by")


def definition_gradients_agree(case: Case) -> str:
    """A custom or detached gradient: the loss falls, but not along the slope of the equation."""
    worst = 0.0
    for causal in case.modes:
        grads = jax.tree.leaves(case.results[causal][1])
        references = jax.tree.leaves(case.definitions[causal][1])
        for grad, reference in zip(grads, references, strict=True):
            worst = max(worst, gap(grad, reference))
    return below(worst, 10 * case.tolerance, "gradients differ by")


def padded_rows_are_zero(case: Case) -> str:
    """Outputs at padding, or of an example of padding alone: mean(v) or NaN in some libraries."""
    for causal in case.modes:
        out, grads = case.results[causal]
        at_padding = np.abs(out[~case.valid])
        if not (at_padding == 0).all():
            raise Failed(
                f"the largest output at padding is {at_padding.max():.3g} (causal={causal}), but "
                f"must be exactly 0"
            )
        if not finite((out, grads)):
            raise Failed(f"an output or gradient is not finite (causal={causal})")
        for grad in grads.inputs.values():
            if (grad[EMPTY] != 0).any():
                raise Failed(f"an example of padding alone has a gradient (causal={causal})")
    return "exactly, with finite gradients"


def padding_sends_nothing(case: Case) -> str:
    """Padding treated as valid: a gradient reaches the tokens that do not exist."""
    worst = 0.0
    for causal in case.modes:
        for grad in case.results[causal][1].inputs.values():
            worst = np.maximum(worst, np.abs(grad[~case.valid]).max())  # NaN stays NaN
    return below(float(worst), 0.0, "gradient at padding")


def padding_content(case: Case) -> str:
    """Other numbers at the padding after the end change a valid output."""
    return _padding_content(case, RIGHT)


def padding_holes(case: Case) -> str:
    """Other numbers at padding before the start or inside change a valid output."""
    return _padding_content(case, HOLES)


def _padding_content(case: Case, example: int) -> str:
    valid = case.valid[example]
    worst = 0.0
    for causal in case.modes:
        changed = case.output(case.replace(~case.valid), causal=causal)
        out = case.results[causal][0]
        worst = max(worst, gap(changed[example][valid], out[example][valid]))
    return below(worst, EXACT, "valid outputs change by")


def padding_length(case: Case) -> str:
    """The same tokens give other outputs in a batch that is padded further."""
    worst = 0.0
    padding = case.tokens_from(SHORT)
    for causal in case.modes:
        alone = case.first_tokens(causal)
        inputs = dataclasses.replace(case.replace(padding), valid=jnp.asarray(~padding))
        out = case.output(inputs, causal=causal)
        worst = max(worst, gap(out[:1, :SHORT], alone))
    return below(worst, case.rounding, f"{SHORT} tokens padded to {case.length} differ by")


def causality(case: Case) -> str:
    """A token that reads the future, whether by finite changes or by derivative."""
    if not case.attention.traits.causal:
        raise NotApplicable("traits.causal is False")
    cut = case.length // 2 - 3  # no multiple of a block
    changed = case.output(case.replace(case.tokens_from(cut)), causal=True)
    out = case.results[True][0]
    worst = gap(changed[:, :cut], out[:, :cut])
    below(worst, case.rounding, "changing the future changes the past by")
    future = np.triu(case.influence[True], 1).max()
    return below(float(future), case.rounding, "derivative by the future")


def looks_ahead(case: Case) -> str:
    """A causal mask inside a bidirectional attention, in its definition too."""
    if not case.attention.traits.bidirectional:
        raise NotApplicable("traits.bidirectional is False")
    expected = case.expected[False]
    depends = case.influence[False] > 0
    apart = ~np.eye(case.length, dtype=bool)
    if not (expected & apart).any():
        raise NotApplicable("by definition, no token sees another")
    ahead = np.triu(depends, 1)  # [H, N, N]
    if not ahead.any(axis=(1, 2)).all():
        raise Failed("in some head, no output depends on a later token")
    first_should = expected[:, 0, 1:].any(axis=-1)
    first_does = depends[:, 0, 1:].any(axis=-1)
    if (first_should & ~first_does).any():
        raise Failed("in some head, the first output does not depend on any later token")
    pairs = int(ahead.sum(axis=(1, 2)).min())
    return f"{pairs} pairs of a token and a later one that it sees"


def own_token(case: Case) -> str:
    """Outputs at other places than their tokens: shifted by one, or time mixed with heads."""
    for causal in case.modes:
        should = np.einsum("hnn->hn", case.expected[causal])
        does = np.einsum("hnn->hn", case.influence[causal]) != 0
        lost = should & ~does
        if lost.any():
            first = np.argwhere(lost)[0].tolist()
            raise Failed(
                f"{int(lost.sum())} of {int(should.sum())} outputs do not depend on their own "
                f"token, the first at head, position {first} (causal={causal})"
            )
    if should.all():
        return "every output depends on its own token"
    return f"{int(should.sum())} outputs that should, do"


def odd_lengths(case: Case) -> str:
    """Lengths shorter than a block or window, or no multiple of one."""
    lengths = (1, 2, 3, 5, SHORT)
    modes: list[bool] = []
    batches: list[Inputs] = []
    for i, length in enumerate(lengths):
        modes.append(case.modes[i % len(case.modes)])  # modes take turns
        batches.append(case.part(slice(1), slice(length), valid=False))

    def outputs(
        params: Params, batches: tuple[Inputs, ...], modes: tuple[bool, ...]
    ) -> list[tuple[jax.Array, jax.Array]]:
        pairs = []
        for inputs, causal in zip(batches, modes, strict=True):
            out = case.attention(params, inputs, causal=causal)
            reference, _ = case.defined(params, inputs, causal)
            pairs.append((out, reference))
        return pairs

    # All lengths in one program, as compiling takes the time.
    results = quick(outputs, static_argnums=2)(case.params, tuple(batches), tuple(modes))
    for length, (out, reference) in zip(lengths, results, strict=True):
        if out.shape != (1, length, case.heads, case.head_dim):
            raise Failed(f"at length {length} the output has shape {list(out.shape)}")
        difference = gap(out, reference)
        below(difference, case.tolerance, f"at length {length} it differs from its definition by")
    return f"lengths {_listed(lengths)}, {case.length}"


def tiny_gradients(case: Case) -> str:
    """A gradient that is not finite at one token or few, or where all of them are padding."""
    lengths = (1, 3)
    modes = (case.modes[-1], case.modes[0])

    def gradient(params: Params, inputs: Inputs, causal: bool) -> dict[str, jax.Array]:
        def loss(parts: dict[str, jax.Array]) -> jax.Array:
            out = case.attention(params, with_arrays(inputs, parts), causal=causal)
            return jnp.sum(out**2)

        # By the inputs that are read only: the others have no gradient.
        parts = {name: getattr(inputs, name) for name in case.reads}
        return jax.grad(loss)(parts)

    def gradients(
        params: Params, batches: tuple[Inputs, ...], modes: tuple[bool, ...]
    ) -> list[dict[str, jax.Array]]:
        grads = []
        for inputs, causal in zip(batches, modes, strict=True):
            grads.append(gradient(params, inputs, causal))
        return grads

    batches = []
    for length in lengths:
        # The first example is valid, the second is padding alone.
        valid = jnp.array([[True], [False]]) & jnp.ones((2, length), bool)
        inputs = case.part(slice(2), slice(length))
        batches.append(dataclasses.replace(inputs, valid=valid))
    results = quick(gradients, static_argnums=2)(case.params, tuple(batches), modes)
    for length, grads in zip(lengths, results, strict=True):
        for name, grad in grads.items():
            if not np.isfinite(grad).all():
                raise Failed(f"the gradient of {name} at length {length} is not finite")
            if (np.asarray(grad)[1] != 0).any():
                raise Failed(
                    f"the gradient of {name} at length {length} is not zero where all is padding"
                )
    return f"finite at lengths {_listed(lengths)}, zero where all is padding"


def precision(case: Case) -> str:
    """Sums or softmax in bfloat16, or float32 that loses digits, against float64.

    The inputs are rounded to bfloat16 for all three. Rounding the output alone to bfloat16 costs
    2^-9 = 0.002 of its largest number.
    """
    rounded = _cast(case.inputs, jnp.bfloat16)
    low, single = _rounded(case, _cast(rounded, np.float32), jnp.bfloat16, jnp.float32)
    exact = case.output(_cast(rounded, np.float64), causal=case.modes[-1])
    low_text = below(gap(low, exact), 3e-3, "bfloat16 error")
    single_text = below(gap(single, exact), 1e-4, "float32 error")
    return f"{low_text}, {single_text}"


def float16_range(case: Case) -> str:
    """Scores, sums or squares that overflow float16 where the output would not."""
    inputs = case.inputs
    large = dataclasses.replace(inputs, q=inputs.q * 128, k=inputs.k * 128, v=inputs.v * 128)
    rounded = _cast(large, np.float16)
    exact = case.output(_cast(rounded, np.float64), causal=case.modes[-1])
    (out,) = _rounded(case, rounded, jnp.float16)
    # Outputs that float16 cannot hold may overflow: the others may not.
    in_range = np.abs(exact) < float(np.finfo(np.float16).max)
    difference = gap(np.where(in_range, out, 0), np.where(in_range, exact, 0))
    return below(difference, 2e-2, "error of q, k and v in the hundreds")


def _rounded(case: Case, inputs: Inputs, *dtypes: DTypeLike) -> list[np.ndarray]:
    """Outputs for `inputs` in each of `dtypes`, without float64; in the last mode.

    The parameters are rounded to float32 here, which is why float32 is not held to its last digit.
    """
    causal = case.modes[-1]

    def outputs(params: Params, inputs: Inputs) -> list[jax.Array]:
        outs = []
        for dtype in dtypes:
            outs.append(case.attention(params, _cast(inputs, dtype), causal=causal))
        return outs

    with jax.enable_x64(False):
        outs = quick(outputs)(_cast(case.params, np.float32), inputs)
        # Compared in float64, so that the comparison itself rounds nothing.
        return [np.asarray(out, np.float64) for out in outs]


def jit_changes_nothing(case: Case) -> str:
    """Python state or control flow that tracing freezes."""
    causal = case.modes[0]
    inputs = jax.tree.map(jnp.asarray, case.part(slice(1), slice(SHORT), valid=False))
    params = jax.tree.map(jnp.asarray, case.params)
    plain = case.attention(params, inputs, causal=causal)
    return below(gap(case.first_tokens(causal), plain), case.rounding, "jit and no jit differ by")


def vmap_and_remat(case: Case) -> str:
    """Examples that depend on one another, or a program that vmap or remat cannot take."""
    causal = case.modes[-1]

    def gradients(params: Params, inputs: Inputs) -> tuple[jax.Array, Params]:
        def loss(
            parts: Params, valid: jax.Array, cotangent: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            """Of one example, as a batch of its own."""
            batch = jax.tree.map(lambda part: part[None], parts)
            alone = Inputs(**batch, valid=valid[None], head_keys=inputs.head_keys)
            run = jax.checkpoint(lambda inputs: case.attention(params, inputs, causal=causal))
            out = run(alone)[0]
            return jnp.sum(out * cotangent), out

        parts = {name: getattr(inputs, name) for name in "qkvx"}
        over_examples = jax.vmap(jax.grad(loss, has_aux=True))
        grads, out = over_examples(parts, inputs.valid, case.cotangent)
        return out, grads

    out, grads = quick(gradients)(case.params, case.inputs)
    reference, reference_grads = case.results[causal]
    worst = gap(out, reference)
    for name in case.reads:
        worst = max(worst, gap(grads[name], reference_grads.inputs[name]))
    return below(worst, case.rounding, "each example alone, batched and rematerialised, differs by")


def determinism(case: Case) -> str:
    """Hidden randomness: two calls differ, or the output depends on undeclared keys."""
    stochastic = case.attention.traits.stochastic
    for causal in case.modes:
        out = case.results[causal][0]
        again = case.output(causal=causal, key=1)
        if not np.array_equal(again, out):
            raise Failed(
                f"with train=False another `key` changes the output by {gap(again, out):.3g} "
                f"(causal={causal})"
            )
    causal = case.modes[0]
    out = case.results[causal][0]
    random_keys = dataclasses.replace(case.inputs, head_keys=case.keys(1))
    outs = [
        case.output(causal=causal, train=True, key=0),
        case.output(causal=causal, train=True, key=1),
        case.output(random_keys, causal=causal),
    ]
    same = all(gap(changed, out) <= EXACT for changed in outs)
    if same and stochastic:
        raise Failed(
            "traits.stochastic is True, but `head_keys` and `key` in training change nothing"
        )
    if not same and not stochastic:
        raise Failed(
            "traits.stochastic is False, but `head_keys` or `key` in training change the output"
        )
    if stochastic:
        return "random only by head_keys and by key in training"
    return "the same on every call"


def other_processes(case: Case) -> str:
    """Randomness from Python's hashes, the clock or a global generator: it changes at a restart."""
    cls, causal = type(case.attention), case.modes[0]
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise NotApplicable(
            f"its class is defined in {cls.__module__}.{cls.__qualname__}, which another process "
            f"cannot import"
        )
    difference = gap(output_elsewhere(case, causal), case.results[causal][0])
    return below(difference, case.rounding, "another process differs by")


def head_slicing(case: Case) -> str:
    """Heads that depend on one another or on their number: a derived model would differ."""
    heads = [case.heads - 1, 0]
    inputs, worst = case.inputs, 0.0

    def cut(x: jax.Array) -> jax.Array:
        return jnp.asarray(np.asarray(x)[:, :, heads])  # of [B, N, H, D]

    # The keys go with their heads, or random attentions would differ for that alone.
    keys = case.keys()[np.asarray(heads)]
    cut_inputs = Inputs(cut(inputs.q), cut(inputs.k), cut(inputs.v), inputs.x, inputs.valid, keys)
    params = jax.tree.map(lambda p: p[heads], case.params)
    run = quick(lambda p, i, causal: case.attention(p, i, causal=causal), static_argnums=2)
    for causal in case.modes:
        out = run(params, cut_inputs, causal)
        worst = max(worst, gap(out, case.results[causal][0][:, :, heads]))
    return below(worst, case.rounding, f"heads {heads} alone differ by")


def reads_what_it_says(case: Case) -> str:
    """An input declared and never used (a dead branch in a search), or used and not declared."""
    for name in "qkvx":
        size = _largest(case, name, lambda causal: case.results[causal][1])
        by_definition = _largest(case, name, lambda causal: case.definitions[causal][1])
        dead = size == 0 or size <= LIVE < by_definition
        if name in case.reads and dead:
            raise Failed(f"traits.reads is {case.reads}, but {name} has no gradient")
        if name not in case.reads and size > 0:
            raise Failed(f"traits.reads is {case.reads}, but {name} has a gradient")
    return f"gradients reach {', '.join(case.reads)} and nothing else"


def _largest(case: Case, name: str, gradients: Callable[[bool], Gradients]) -> float:
    """The largest gradient by an input over the modes, relative to that of any input."""
    sizes = []
    for causal in case.modes:
        grad = gradients(causal).inputs[name]
        sizes.append(np.abs(grad).max() / _slope(case, causal))
    return max(sizes)


def parameters_live(case: Case) -> str:
    """A parameter without gradient in some head: it is trained, saved and counted for nothing."""
    by_mode: list[list[np.ndarray]] = []
    for causal in case.modes:
        by_mode.append(jax.tree.leaves(case.results[causal][1].params))
    if not by_mode[0]:
        raise NotApplicable("no floating parameters")
    for grads in zip(*by_mode, strict=True):
        size = np.zeros(case.heads)
        # Over the modes together: one mode may have no use for a parameter.
        for causal, grad in zip(case.modes, grads, strict=True):
            by_head = np.abs(grad).reshape(case.heads, -1)  # [H, numbers of a head]
            size = size + by_head.max(axis=-1) / _slope(case, causal)
        dead = np.flatnonzero(~(size > LIVE))  # NaN is dead too
        if dead.size:
            shape = list(grads[0].shape)
            raise Failed(f"a parameter of shape {shape} has no gradient in head(s) {dead.tolist()}")
    return f"{len(by_mode[0])} arrays, every head"


def large_inputs(case: Case) -> str:
    """An exponential or a division that overflows once activations grow."""
    inputs = dataclasses.replace(case.inputs, q=case.inputs.q * 30, k=case.inputs.k * 30)
    for causal in case.modes:
        if not finite(case.evaluate(inputs, causal=causal)):
            raise Failed(
                f"with q and k 30 times larger, an output or gradient is not finite "
                f"(causal={causal})"
            )
    return "finite at 30 times the scale"


def growth(case: Case) -> str:
    """An N x N array, forward or backward, or as many FLOPs, where the traits promise less.

    Arrays come from a walk over the traced program; FLOPs are those of `cost`, which `cost_flops`
    compares.
    """
    short = dataclasses.replace(case.shape, batch=1, length=4096)
    long = dataclasses.replace(case.shape, batch=1, length=8192)
    allowed = case.attention.traits.growth + 0.15  # for logarithms, and terms of lower order
    worst = 0.0
    with jax.enable_x64(False):
        for causal in case.modes:
            small = max(arrays(_traced(case, short, causal, gradients=True)))
            large = max(arrays(_traced(case, long, causal, gradients=True)))
            worst = max(worst, math.log2(large / small))
    text = f"largest array from N={short.length} to {long.length}: N to the"
    array_text = below(worst, allowed, text)
    few = max(case.attention.cost(short).flops, 1)
    many = max(case.attention.cost(long).flops, 1)
    flops_text = below(math.log2(many / few), allowed, "FLOPs: N to the")
    return f"{array_text}, {flops_text}"


def cost_parameters(case: Case) -> str:
    """A parameter count that is not what init makes, or a cost that is negative or not finite."""
    cost = case.attention.cost(case.shape)
    count = sum(p.size for p in jax.tree.leaves(case.initial))
    if cost.parameters != count:
        raise Failed(f"cost says {cost.parameters} parameters, init makes {count}")
    if not all(np.isfinite(number) and number >= 0 for number in dataclasses.astuple(cost)):
        raise Failed(f"every cost must be finite and not negative, got {cost}")
    return f"{count} parameters"


def cost_flops(case: Case) -> str:
    """A FLOP count off by a factor, such as a forgotten 2 or a forgotten product."""
    shape = Shape(length=64, heads=2, head_dim=32, model_dim=64, batch=2)
    causal = case.modes[0]
    with jax.enable_x64(False):  # as models run
        traced = _traced(case, shape, causal, gradients=False)
        loops = {"scan", "while"} & set(primitives(traced))
        if loops:
            raise NotApplicable(
                f"it has a {loops.pop()} at N={shape.length}, whose body XLA counts once"
            )
        analysis = _lowered(case, shape, causal).compile().cost_analysis() or {}
    counted = analysis.get("flops", 0.0)
    flops = case.attention.cost(shape).flops
    # Selects and copies, two for each output.
    slack = 2 * shape.batch * shape.length * shape.heads * shape.head_dim
    if abs(counted - flops) > 0.1 * counted + slack:
        raise Failed(
            f"cost says {flops:.4g} FLOPs, XLA counts {counted:.4g}, allowed 10% + {slack}"
        )
    return f"{flops:.4g} FLOPs, XLA counts {counted:.4g}"


def second_order(case: Case) -> str:
    """A second derivative that does not exist or is not finite: exact bilevel search would fail."""
    order = case.attention.traits.order
    if order < 2:
        raise NotApplicable(f"traits.order is {order}")
    causal = case.modes[-1]
    start = case.length // 2
    inputs = case.part(slice(4), slice(start, start + 7))

    def loss(qkv: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v = qkv
        changed = dataclasses.replace(inputs, q=q, k=k, v=v)
        out = case.attention(case.params, changed, causal=causal)
        return jnp.sum(out**2)

    def product(
        point: tuple[jax.Array, ...], direction: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        """Of the Hessian with a vector, forward over reverse as bilevel search computes it."""
        return jax.jvp(jax.grad(loss), (point,), (direction,))[1]

    point = (jnp.asarray(inputs.q), jnp.asarray(inputs.k), jnp.asarray(inputs.v))
    direction = tuple(jnp.asarray(case.normal(*p.shape)) for p in point)
    if not finite(quick(product)(point, direction)):
        raise Failed(f"a Hessian-vector product is not finite (causal={causal})")
    return "Hessian-vector products are finite"


def alibi(case: Case) -> str:
    """Slopes accepted and ignored, or of another head, or times a wrong distance."""
    if "alibi" not in case.attention.traits.positions:
        raise NotApplicable("traits.positions has no 'alibi'")
    # All different, so that another head's slope shows.
    slopes = jnp.asarray(2.0 ** -np.arange(case.heads))
    inputs = dataclasses.replace(case.inputs, slopes=slopes)

    def outputs(params: Params, inputs: Inputs, causal: bool) -> tuple[jax.Array, jax.Array]:
        out = case.attention(params, inputs, causal=causal)
        return out, case.defined(params, inputs, causal)[0]

    run = quick(outputs, static_argnums=2)
    worst = 0.0
    for causal in case.modes:
        out, reference = run(case.params, inputs, causal)
        worst = max(worst, gap(out, reference))
    return below(worst, case.tolerance, "with slopes it differs from its definition by")


def attention_dropout(case: Case) -> str:
    """Dropout accepted and ignored, outside training, or that changes the mean."""
    traits, samples = case.attention.traits, 400
    if not traits.dropout:
        raise NotApplicable("traits.dropout is ''")
    causal = case.modes[-1]
    inputs = dataclasses.replace(case.part(slice(1), slice(SHORT), valid=False), dropout=0.25)

    def run(params: Params, inputs: Inputs, key: jax.Array, train: bool) -> jax.Array:
        return case.attention(params, inputs, causal=causal, train=train, key=key)

    still = case.first_tokens(causal)
    # Params and inputs are arguments, as there: constants would be folded, and round differently.
    evaluate = quick(run, static_argnums=3)
    evaluated = evaluate(case.params, inputs, jax.random.key(0), False)
    if not np.array_equal(evaluated, still):
        raise Failed("with train=False a rate of 0.25 changes the output")
    keys = jax.random.split(jax.random.key(case.seed), samples)
    noisy = quick(jax.vmap(lambda key: run(case.params, inputs, key, True)))(keys)
    noisy = np.asarray(noisy, np.float64)  # [samples, 1, SHORT, H, D]
    deviation = noisy.std(axis=0)
    if not (deviation.reshape(SHORT, -1).max(axis=-1) > 1e-9).all():
        raise Failed("for some token, a rate of 0.25 in training changes nothing")
    text = f"drops {traits.dropout} in training only; its mean is"
    if traits.stochastic:
        return f"{text} not compared, because `key` draws more than dropout"
    # The small constant is for numbers that dropout cannot change.
    standard_error = deviation * samples**-0.5 + 1e-9
    off = np.abs(noisy.mean(axis=0) - still) / standard_error
    return below(float(off.max()), 6.0, f"{text} off by standard errors")


def cross_attention(case: Case) -> str:
    """Queries of another sequence than the keys: a mask of the wrong one, or ignored lengths."""
    inputs, keys = case.inputs, slice(SHORT)
    assert inputs.valid is not None
    # Tokens of the first sequence ask, those of the second, which is shorter, answer.
    crossed = dataclasses.replace(
        inputs,
        k=inputs.k[::-1, keys],
        v=inputs.v[::-1, keys],
        x=None,
        valid=inputs.valid[::-1, keys],
        query_valid=inputs.valid,
    )
    if not case.attention.traits.cross:
        return _refuses(case, crossed, False, "keys of another sequence")

    def outputs(params: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        out = case.attention(params, inputs, causal=False)
        return out, case.defined(params, inputs, False)[0]

    run = quick(outputs)
    out, reference = run(case.params, crossed)
    if out.shape != inputs.q.shape:
        raise Failed(f"the output is {out.shape} for queries of {inputs.q.shape}")
    if np.asarray(out)[~case.valid].any():
        raise Failed("the output of an invalid query is not zero")
    own = dataclasses.replace(inputs, query_valid=inputs.valid)
    alike, _ = run(case.params, own)
    worst = max(gap(out, reference), gap(alike, case.output(causal=False)))
    return below(worst, case.tolerance, "across two sequences it differs from its definition by")


def refuses_the_other_mode(case: Case) -> str:
    """A mode that the traits rule out, ignored without an error: the model sees the future."""
    if len(case.modes) == 2:
        raise NotApplicable("both modes are supported")
    causal = not case.modes[0]
    return _refuses(case, case.part(slice(1), slice(SHORT)), causal, f"causal={causal}")


def refuses_longer_inputs(case: Case) -> str:
    """An input longer than the parameters were built for, cut or clamped without an error."""
    if not case.attention.traits.fixed_length:
        raise NotApplicable("traits.fixed_length is False")
    # Keys are of heads, and not of tokens: they stay out of the concatenation.
    inputs = dataclasses.replace(case.part(slice(1), slice(None)), head_keys=None)
    longer = jax.tree.map(lambda a: np.concatenate([a, a], axis=1), inputs)
    longer = dataclasses.replace(longer, head_keys=case.keys())
    text = f"{2 * case.length} tokens where built for {case.length}"
    return _refuses(case, longer, case.modes[0], text)


def refuses_unsupported_inputs(case: Case) -> str:
    """Slopes or dropout that the traits rule out, ignored without an error."""
    inputs = case.part(slice(1), slice(SHORT))
    traits = case.attention.traits
    refusals = []
    if "alibi" not in traits.positions:
        slopes = jnp.ones(case.heads)
        changed = dataclasses.replace(inputs, slopes=slopes)
        refusals.append(_refuses(case, changed, case.modes[0], "slopes"))
    if not traits.dropout:
        changed = dataclasses.replace(inputs, dropout=0.5)
        refusals.append(_refuses(case, changed, case.modes[0], "dropout"))
    if not refusals:
        raise NotApplicable("it supports slopes and dropout")
    return "; ".join(refusals)


def _refuses(case: Case, inputs: Inputs, causal: bool, text: str) -> str:
    try:
        jax.eval_shape(lambda p, i: case.attention(p, i, causal=causal), case.params, inputs)
    except InputError as error:
        return f"{text}: {error}"
    raise Failed(f"accepts {text}, but must raise InputError (see base.accept and base.fits)")


PROPERTIES: tuple[Callable[[Case], str], ...] = (
    frozen_dataclass,
    text_round_trip,
    parameters_lead_with_heads,
    shape_and_dtype,
    definition,
    definition_gradients_agree,
    padded_rows_are_zero,
    padding_sends_nothing,
    padding_content,
    padding_holes,
    padding_length,
    causality,
    looks_ahead,
    own_token,
    odd_lengths,
    tiny_gradients,
    precision,
    float16_range,
    jit_changes_nothing,
    vmap_and_remat,
    determinism,
    other_processes,
    head_slicing,
    reads_what_it_says,
    parameters_live,
    large_inputs,
    growth,
    cost_parameters,
    cost_flops,
    second_order,
    alibi,
    attention_dropout,
    cross_attention,
    refuses_the_other_mode,
    refuses_longer_inputs,
    refuses_unsupported_inputs,
    *DECODING,
)
"""All of them, in the order of the report. `text_round_trip` also takes the table of names."""


def _slope(case: Case, causal: bool) -> float:
    """The largest gradient of any input, or 1."""
    grads = case.results[causal][1].inputs.values()
    return max(np.abs(grad).max() for grad in grads) or 1.0


def _listed(lengths: tuple[int, ...]) -> str:
    return ", ".join(map(str, lengths))


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    """Floating arrays of `tree` in `dtype`; jax arrays inside a trace, numpy otherwise."""

    def cast(a: Any) -> Any:
        if jnp.issubdtype(a.dtype, jnp.floating):
            return a.astype(dtype)
        return a

    return jax.tree.map(cast, tree)


def _abstract(case: Case, shape: Shape) -> tuple[Any, Inputs]:
    """Parameters and inputs of `shape` in float32, as shapes only; no padding."""

    def array(*sizes: int) -> Any:  # stands for an array: tracing reads its shape alone
        return jax.ShapeDtypeStruct((shape.batch, shape.length, *sizes), jnp.float32)

    qkv = array(shape.heads, shape.head_dim)
    params = jax.eval_shape(lambda key: case.attention.init(key, shape), jax.random.key(0))
    keys: Any = jax.eval_shape(lambda key: jax.random.split(key, shape.heads), jax.random.key(0))
    x = None
    if "x" in case.reads:
        x = array(shape.model_dim)
    return params, Inputs(qkv, qkv, qkv, x, None, keys)


def _traced(case: Case, shape: Shape, causal: bool, *, gradients: bool) -> ClosedJaxpr:
    """The program of one forward pass, or of its gradients by q, k and v, at `shape`."""

    def run(params: Params, inputs: Inputs) -> jax.Array | tuple[jax.Array, ...]:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            changed = dataclasses.replace(inputs, q=q, k=k, v=v)
            return jnp.sum(case.attention(params, changed, causal=causal))

        if not gradients:
            return loss(inputs.q, inputs.k, inputs.v)
        return jax.grad(loss, argnums=(0, 1, 2))(inputs.q, inputs.k, inputs.v)

    return jax.make_jaxpr(run)(*_abstract(case, shape))


def _lowered(case: Case, shape: Shape, causal: bool) -> jax.stages.Lowered:
    run = jax.jit(lambda p, i: case.attention(p, i, causal=causal))
    return run.lower(*_abstract(case, shape))
