"""The properties every attention must have. Each is one function, and each says which mistake it
catches.

A property returns a sentence with its numbers, raises `Failed`, or raises `NotApplicable` with the
reason. They run with float64 enabled, so that tolerances can be tight; those about lower precision
switch it off."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dartformer import spec
from dartformer.attention.base import DROPOUTS, POSITIONS, Attention, Inputs, Params, Shape, Traits
from dartformer.attention.conformance.case import (
    EMPTY,
    HOLES,
    RIGHT,
    Case,
    Failed,
    NotApplicable,
    arrays,
    below,
    gap,
    primitives,
    quick,
)
from dartformer.attention.conformance.process import elsewhere
from dartformer.errors import InputError

SHORT = 17
"""A length for which outputs are also computed apart."""

EXACT = 1e-12
"""Allowed where two computations should do the same operations, in float64."""

LIVE = 1e-10
"""A gradient smaller than this part of the largest one is rounding: terms that cancel exactly leave
as much."""


def frozen_dataclass(case: Case) -> str:
    """A mutable or unhashable type: it could not be static under jit, and would recompile or go
    stale."""
    attention = case.attention
    if not dataclasses.is_dataclass(attention) or not isinstance(attention, Attention):
        raise Failed("must be a dataclass with traits, init, __call__, weights and cost")
    if not attention.__dataclass_params__.frozen:
        raise Failed("must be decorated with @dataclass(frozen=True)")
    copy = dataclasses.replace(attention)
    traits = attention.traits
    if not isinstance(traits, Traits) or copy != attention or hash(copy) != hash(attention):
        raise Failed("traits must be a Traits, and a copy must be equal with the same hash")
    if not traits.positions <= POSITIONS or traits.dropout not in DROPOUTS:
        raise Failed(
            f"traits.positions must be among {sorted(POSITIONS)} and traits.dropout one of {DROPOUTS}, "
            f"got {sorted(traits.positions)} and {traits.dropout!r}"
        )
    return "frozen, hashable, equal to its copy"


def text_round_trip(case: Case, table: Mapping[str, type] | None = None) -> str:
    """A field that text cannot carry: the genotype on disk would name another attention."""
    if table is None or type(case.attention) not in [table[name] for name in table]:
        raise NotApplicable("its class is not registered")
    text = spec.to_text(case.attention, table)
    if spec.parse(text, table) != case.attention:
        raise Failed(f"{text!r} reads back as {spec.parse(text, table)!r}")
    return text


def parameters_lead_with_heads(case: Case) -> str:
    """Parameters that cannot be cut by head, or heads that all begin alike."""
    leaves = jax.tree.leaves(case.initial)
    if not leaves:
        raise NotApplicable("no parameters")
    for p in leaves:
        if p.ndim == 0 or p.shape[0] != case.heads:
            raise Failed(
                f"a parameter has shape {list(p.shape)}, its first axis must be the {case.heads} heads"
            )
        if p.dtype.kind == "f" and np.ptp(p) > 0 and (p[0] == p[1]).all():
            raise Failed(
                f"a parameter of shape {list(p.shape)} begins the same in two heads: split the key"
            )
    return f"{len(leaves)} arrays"


def shape_and_dtype(case: Case) -> str:
    """An output of another shape or dtype than v's, in some mode, precision or with some input left
    out."""
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            for causal in case.modes:
                for valid, train in ((False, False), (True, True)):
                    given = _cast(case.part(slice(2), slice(None), valid=valid), dtype)
                    params = _cast(
                        case.params, jnp.float64 if dtype == jnp.float64 else jnp.float32
                    )
                    out = jax.eval_shape(
                        lambda p, i, c=causal, t=train: case.attention(
                            p, i, causal=c, train=t, key=jax.random.key(0) if t else None
                        ),
                        params,
                        given,
                    )
                    if out.shape != given.v.shape or out.dtype != dtype:
                        raise Failed(
                            f"v is {dtype.__name__}{list(given.v.shape)} and the output "
                            f"{out.dtype}{list(out.shape)} (causal={causal}, train={train})"
                        )
    return "as v in bfloat16, float32, float64"


def definition(case: Case) -> str:
    """A fast path that computes something else than the equation: a strided window, heads mixed
    with time."""
    worst = 0.0
    for causal in case.modes:
        worst = max(worst, gap(case.results[causal][0], case.definitions[causal][0]))
    return below(
        worst,
        case.tolerance,
        f"differs from {'weights @ v' if _matrix(case) else 'reference()'} by",
    )


def definition_gradients_agree(case: Case) -> str:
    """A custom or detached gradient: the loss falls, but not along the slope of the equation."""
    worst = 0.0
    for causal in case.modes:
        found, wanted = (jax.tree.leaves(r[causal][1]) for r in (case.results, case.definitions))
        worst = max([worst, *(gap(f, w) for f, w in zip(found, wanted, strict=True))])
    return below(worst, 10 * case.tolerance, "gradients differ by")


def padded_rows_are_zero(case: Case) -> str:
    """Outputs at padding, or of an example that is all padding: mean(v) in some libraries, NaN in
    others."""
    for causal in case.modes:
        out, grads = case.results[causal]
        if not (out[~np.asarray(case.inputs.valid)] == 0).all():
            raise Failed(
                f"largest output at padding {np.abs(out[~np.asarray(case.inputs.valid)]).max():.3g} "
                f"(causal={causal}), must be exactly 0"
            )
        if not all(np.isfinite(g).all() for g in jax.tree.leaves((out, grads))):
            raise Failed(f"an output or gradient is not finite (causal={causal})")
        if any((g[EMPTY] != 0).any() for g in grads[0].values()):
            raise Failed(f"an example of padding alone has a gradient (causal={causal})")
    return "exactly, with finite gradients"


def padding_sends_nothing(case: Case) -> str:
    """Padding treated as valid: a gradient reaches the tokens that do not exist."""
    worst = max(
        float(np.abs(g[~np.asarray(case.inputs.valid)]).max())
        for causal in case.modes
        for g in case.results[causal][1][0].values()
    )
    return below(worst, 0.0, "gradient at padding")


def padding_content(case: Case) -> str:
    """Other numbers at the padding after the end change a valid output."""
    return _padding_content(case, RIGHT)


def padding_holes(case: Case) -> str:
    """Other numbers at padding before the start or inside change a valid output: only trailing
    padding works."""
    return _padding_content(case, HOLES)


def padding_length(case: Case) -> str:
    """The same tokens give other outputs once the batch is padded further: results depend on the
    batch."""
    worst, short = 0.0, SHORT
    for causal in case.modes:
        alone = _first_tokens(case, causal)
        inputs = case.replace(np.broadcast_to(np.arange(case.length) >= short, (4, case.length)))
        valid: Any = np.broadcast_to(np.arange(case.length) < short, (4, case.length))
        inputs = dataclasses.replace(inputs, valid=valid)
        worst = max(worst, gap(case.evaluate(inputs, causal=causal)[0][:1, :short], alone))
    return below(
        worst, max(EXACT, case.tolerance), f"{short} tokens padded to {case.length} differ by"
    )


def causality(case: Case) -> str:
    """A token that reads the future, whether by finite changes or by derivative."""
    if not case.attention.traits.causal:
        raise NotApplicable("traits.causal is False")
    cut = case.length // 2 - 3
    changed = case.evaluate(
        case.replace(np.broadcast_to(np.arange(case.length) >= cut, (4, case.length))), causal=True
    )[0]
    worst = gap(changed[:, :cut], case.results[True][0][:, :cut])
    below(worst, max(EXACT, case.tolerance), "changing the future changes the past by")
    return below(
        float(np.triu(case.influence[True], 1).max()),
        max(EXACT, case.tolerance),
        "derivative by the future",
    )


def looks_ahead(case: Case) -> str:
    """A causal mask inside a bidirectional attention, in its definition too: no token sees a later
    one."""
    if not case.attention.traits.bidirectional:
        raise NotApplicable("traits.bidirectional is False")
    expected, moved = case.expected[False], case.influence[False] > 0
    if not (expected & ~np.eye(case.length, dtype=bool)).any():
        raise NotApplicable("by definition, no token sees another")
    if not np.triu(moved, 1).any(axis=(1, 2)).all():
        raise Failed("no output depends on a later token, in some head")
    if (expected[:, 0, 1:].any(axis=-1) & ~moved[:, 0, 1:].any(axis=-1)).any():
        raise Failed("the first output does not depend on any later token, in some head")
    return f"{int(np.triu(moved, 1).sum(axis=(1, 2)).min())} pairs of a token and a later one that it sees"


def own_token(case: Case) -> str:
    """Outputs at other places than their tokens: shifted by one, or time and heads reshaped into
    each other."""
    for causal in case.modes:
        own = np.einsum("hnn->hn", case.expected[causal])
        lost = own & (np.einsum("hnn->hn", case.influence[causal]) == 0)
        if lost.any():
            raise Failed(
                f"{int(lost.sum())} of {int(own.sum())} outputs do not depend on their own token, the first "
                f"at head, position {np.argwhere(lost)[0].tolist()} (causal={causal})"
            )
    return (
        "every output depends on its own token"
        if own.all()
        else f"{int(own.sum())} outputs that should, do"
    )


def odd_lengths(case: Case) -> str:
    """Lengths shorter than a block or window, or no multiple of one."""
    lengths = (1, 2, 3, 5, SHORT)

    def both(params: Params, given: tuple[Inputs, ...], causal_at: tuple[bool, ...]) -> list[Any]:
        return [
            (case.attention(params, inputs, causal=causal), case.defined(params, inputs, causal)[0])
            for inputs, causal in zip(given, causal_at, strict=True)
        ]

    modes = tuple(case.modes[i % len(case.modes)] for i in range(len(lengths)))
    given = tuple(case.part(slice(1), slice(length), valid=False) for length in lengths)
    results = quick(both, static_argnums=2)(case.params, given, modes)
    for length, (out, wanted) in zip(lengths, results, strict=True):
        if out.shape != (1, length, case.heads, case.head_dim):
            raise Failed(f"at length {length} the output is {list(out.shape)}")
        below(
            gap(out, wanted),
            case.tolerance,
            f"at length {length} it differs from its definition by",
        )
    return f"lengths {', '.join(map(str, lengths))}, {case.length}"


def tiny_gradients(case: Case) -> str:
    """A gradient that is not finite at one token or at fewer than a block, or where all of them are
    padding."""
    lengths = (1, 3)

    def gradients(
        params: Params, given: tuple[Inputs, ...], causal_at: tuple[bool, ...]
    ) -> list[Any]:
        return [
            jax.grad(
                lambda parts, i=inputs, c=causal: jnp.sum(
                    case.attention(params, dataclasses.replace(i, **parts), causal=c) ** 2
                )
            )({name: getattr(inputs, name) for name in case.reads})
            for inputs, causal in zip(given, causal_at, strict=True)
        ]

    modes = (case.modes[-1], case.modes[0])
    given = []
    for length in lengths:
        inputs = case.part(slice(2), slice(length))
        valid: Any = np.array([[True], [False]]) & np.ones((2, length), bool)
        given.append(dataclasses.replace(inputs, valid=valid))
    for length, grads in zip(
        lengths, quick(gradients, static_argnums=2)(case.params, tuple(given), modes), strict=True
    ):
        for name, g in grads.items():
            if not np.isfinite(g).all():
                raise Failed(f"the gradient of {name} at length {length} is not finite")
            if (np.asarray(g)[1] != 0).any():
                raise Failed(
                    f"the gradient of {name} at length {length} is not zero where all is padding"
                )
    return f"finite at lengths {', '.join(map(str, lengths))}, zero where all is padding"


def precision(case: Case) -> str:
    """Sums or softmax in bfloat16, or float32 that loses digits, against float64 on the same
    rounded inputs.

    Rounding the output alone to bfloat16 costs 2^-9 = 0.002 of its largest number.
    """
    rounded = _cast(case.inputs, jnp.bfloat16)
    low, single = _rounded(case, _cast(rounded, np.float32), jnp.bfloat16, jnp.float32)
    exact = case.evaluate(_cast(rounded, np.float64), causal=case.modes[-1])[0]
    return ", ".join(
        below(gap(out, exact), limit, f"{name} error")
        for out, limit, name in ((low, 3e-3, "bfloat16"), (single, 1e-4, "float32"))
    )


def float16_range(case: Case) -> str:
    """Scores, sums or squares that overflow float16 on the way to an output that it could hold."""
    large = dataclasses.replace(
        case.inputs, q=case.inputs.q * 128, k=case.inputs.k * 128, v=case.inputs.v * 128
    )
    rounded = _cast(large, np.float16)
    exact = case.evaluate(_cast(rounded, np.float64), causal=case.modes[-1])[0]
    (out,) = _rounded(case, rounded, jnp.float16)
    holds = np.abs(exact) < float(np.finfo(np.float16).max)
    return below(
        gap(np.where(holds, out, 0), np.where(holds, exact, 0)),
        2e-2,
        "error of q, k and v in the hundreds",
    )


def jit_changes_nothing(case: Case) -> str:
    """Python state or control flow that tracing freezes."""
    causal = case.modes[0]
    inputs = jax.tree.map(jnp.asarray, case.part(slice(1), slice(SHORT), valid=False))
    plain = case.attention(jax.tree.map(jnp.asarray, case.params), inputs, causal=causal)
    return below(
        gap(_first_tokens(case, causal), plain),
        max(EXACT, case.tolerance),
        "jit and no jit differ by",
    )


def vmap_and_remat(case: Case) -> str:
    """Examples that depend on one another or on their number; a program that cannot be batched or
    rematerialised."""
    causal = case.modes[-1]

    def gradients(params: Params, inputs: Inputs) -> tuple[jax.Array, Params]:
        def one(
            parts: Params, valid: jax.Array, cotangent: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            alone = Inputs(
                **{name: part[None] for name, part in parts.items()},
                valid=valid[None],
                head_keys=inputs.head_keys,
            )
            out = jax.checkpoint(lambda i: case.attention(params, i, causal=causal))(alone)[0]
            return jnp.sum(out * cotangent), out

        parts = {name: getattr(inputs, name) for name in "qkvx"}
        grads, out = jax.vmap(jax.grad(one, has_aux=True))(parts, inputs.valid, case.cotangent)
        return out, grads

    out, grads = quick(gradients)(case.params, case.inputs)
    wanted, (wanted_grads, _) = case.results[causal]
    worst = max(gap(out, wanted), *(gap(grads[name], wanted_grads[name]) for name in case.reads))
    return below(
        worst,
        max(EXACT, case.tolerance),
        "each example alone, batched and rematerialised, differs by",
    )


def determinism(case: Case) -> str:
    """Hidden randomness: two calls differ, or evaluation depends on `key`, or on keys it declares
    not to read."""
    stochastic = case.attention.traits.stochastic
    for causal in case.modes:
        again = case.evaluate(causal=causal, key=1)[0]
        if not np.array_equal(again, case.results[causal][0]):
            change = gap(again, case.results[causal][0])
            raise Failed(
                f"with train=False another `key` changes the output by {change:.3g} (causal={causal})"
            )
    causal = case.modes[0]
    others = [case.evaluate(causal=causal, train=True, key=key)[0] for key in (0, 1)]
    others.append(
        case.evaluate(dataclasses.replace(case.inputs, head_keys=case.keys(1)), causal=causal)[0]
    )
    same = all(gap(other, case.results[causal][0]) <= EXACT for other in others)
    if same == stochastic:
        raise Failed(
            f"traits.stochastic is {stochastic}, and `head_keys` and `key` in training change "
            f"{'nothing' if same else 'the output'}"
        )
    return (
        "random only by head_keys and by key in training"
        if stochastic
        else "the same on every call"
    )


def other_processes(case: Case) -> str:
    """Randomness from Python's hashes, the clock or a global generator: another model after a
    restart."""
    cls, causal = type(case.attention), case.modes[0]
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise NotApplicable(
            f"its class is defined in {cls.__module__}.{cls.__qualname__}, which another process "
            f"cannot import"
        )
    again = elsewhere(case, causal)
    return below(
        gap(again, case.results[causal][0]),
        max(EXACT, case.tolerance),
        "another process differs by",
    )


def head_slicing(case: Case) -> str:
    """Heads that depend on one another or on their number: a derived model would differ from the
    supernet."""
    heads, worst = [case.heads - 1, 0], 0.0
    inputs = case.inputs

    def cut(x: Any) -> Any:
        return np.asarray(x)[:, :, heads]

    for causal in case.modes:
        given = Inputs(
            cut(inputs.q),
            cut(inputs.k),
            cut(inputs.v),
            inputs.x,
            inputs.valid,
            case.keys()[np.asarray(heads)],
        )
        params = jax.tree.map(lambda p: p[heads], case.params)
        out = quick(lambda p, i, c=causal: case.attention(p, i, causal=c))(params, given)
        worst = max(worst, gap(out, case.results[causal][0][:, :, heads]))
    return below(worst, max(EXACT, case.tolerance), f"heads {heads} alone differ by")


def reads_what_it_says(case: Case) -> str:
    """An input declared and never used (a dead branch in a search), or used and not declared."""
    for name in "qkvx":
        found, wanted = (
            max(np.abs(r[causal][1][0][name]).max() / _slope(case, causal) for causal in case.modes)
            for r in (case.results, case.definitions)
        )
        declared, dead = name in case.attention.traits.reads, found == 0 or found <= LIVE < wanted
        if declared == dead or (found > 0 and not declared):
            raise Failed(
                f"traits.reads is {case.reads}, and {name} has {'no' if declared else 'a'} gradient"
            )
    return f"gradients reach {', '.join(case.reads)} and nothing else"


def parameters_live(case: Case) -> str:
    """A parameter without gradient in some head: it is searched, saved and counted, and does
    nothing."""
    grads = [
        [g / _slope(case, causal) for g in jax.tree.leaves(case.results[causal][1][1])]
        for causal in case.modes
    ]
    if not grads[0]:
        raise NotApplicable("no floating parameters")
    for leaf in zip(*grads, strict=True):
        live = sum(np.abs(g).reshape(case.heads, -1).max(axis=-1) for g in leaf) > LIVE
        if not live.all():
            raise Failed(
                f"a parameter of shape {list(leaf[0].shape)} has no gradient in head(s) "
                f"{np.flatnonzero(~live).tolist()}"
            )
    return f"{len(grads[0])} arrays, every head"


def large_inputs(case: Case) -> str:
    """An exponential or a division that overflows once activations grow."""
    inputs = dataclasses.replace(case.inputs, q=case.inputs.q * 30, k=case.inputs.k * 30)
    for causal in case.modes:
        if not all(
            np.isfinite(a).all() for a in jax.tree.leaves(case.evaluate(inputs, causal=causal))
        ):
            raise Failed(
                f"q and k 30 times larger give an output or gradient that is not finite (causal={causal})"
            )
    return "finite at 30 times the scale"


def growth(case: Case) -> str:
    """An N x N array, forward or backward, or as many FLOPs, in what claims to be cheaper.

    Arrays are found by walking the traced program; FLOPs are those of `cost`, which `cost_flops`
    compares."""
    lengths, worst = (4096, 8192), 0.0
    shapes = [dataclasses.replace(case.shape, batch=1, length=n) for n in lengths]
    with jax.enable_x64(False):
        for causal in case.modes:
            small, large = (max(arrays(_traced(case, shape, causal, True))) for shape in shapes)
            worst = max(worst, math.log2(large / small))
    allowed = case.attention.traits.growth + 0.15
    sentence = below(worst, allowed, f"largest array from N={lengths[0]} to {lengths[1]}: N to the")
    few, many = (max(case.attention.cost(shape).flops, 1) for shape in shapes)
    return f"{sentence}, {below(math.log2(many / few), allowed, 'FLOPs: N to the')}"


def cost_parameters(case: Case) -> str:
    """A parameter count that is not what init makes; also a cost that is negative or not finite."""
    cost = case.attention.cost(case.shape)
    made = sum(p.size for p in jax.tree.leaves(case.initial))
    if cost.parameters != made:
        raise Failed(f"cost says {cost.parameters} parameters, init makes {made}")
    if not all(np.isfinite(c) and c >= 0 for c in dataclasses.astuple(cost)):
        raise Failed(f"every cost must be finite and not negative, got {cost}")
    return f"{made} parameters"


def cost_flops(case: Case) -> str:
    """A FLOP count off by a factor, such as a forgotten 2 or a forgotten product."""
    shape = Shape(length=64, heads=2, head_dim=32, model_dim=64, batch=2)
    causal = case.modes[0]
    with jax.enable_x64(False):
        traced = _traced(case, shape, causal, False)
        if loops := {"scan", "while"} & set(primitives(traced)):
            raise NotApplicable(
                f"it has a {loops.pop()} at N={shape.length}, whose body XLA counts once"
            )
        analysis = _lowered(case, shape, causal).compile().cost_analysis() or {}
    counted, ours = analysis.get("flops", 0.0), case.attention.cost(shape).flops
    slack = (
        2 * shape.batch * shape.length * shape.heads * shape.head_dim
    )  # selects and copies, two for each output
    if abs(counted - ours) > 0.1 * counted + slack:
        raise Failed(f"cost says {ours:.4g} FLOPs, XLA counts {counted:.4g}, allowed 10% + {slack}")
    return f"{ours:.4g} FLOPs, XLA counts {counted:.4g}"


def second_order(case: Case) -> str:
    """A second derivative that does not exist or is not finite: exact bilevel search would fail or
    go NaN."""
    if case.attention.traits.order < 2:
        raise NotApplicable(f"traits.order is {case.attention.traits.order}")
    causal = case.modes[-1]
    given = case.part(slice(4), slice(case.length // 2, case.length // 2 + 7))

    def loss(qkv: tuple[jax.Array, ...]) -> jax.Array:
        inputs = dataclasses.replace(given, q=qkv[0], k=qkv[1], v=qkv[2])
        return jnp.sum(case.attention(case.params, inputs, causal=causal) ** 2)

    point = (jnp.asarray(given.q), jnp.asarray(given.k), jnp.asarray(given.v))
    along = tuple(jnp.asarray(case.normal(*p.shape)) for p in point)
    product = quick(lambda p, a: jax.jvp(jax.grad(loss), (p,), (a,))[1])
    products = product(point, along)
    if not all(np.isfinite(p).all() for p in products):
        raise Failed(f"a Hessian-vector product is not finite (causal={causal})")
    return "Hessian-vector products are finite"


def refuses_the_other_mode(case: Case) -> str:
    """Causality asked for and ignored: the model cheats, and nobody is told."""
    if len(case.modes) == 2:
        raise NotApplicable("both modes are supported")
    causal = not case.modes[0]
    return _refuses(case, case.part(slice(1), slice(SHORT)), causal, f"causal={causal}")


def refuses_longer_inputs(case: Case) -> str:
    """An input longer than the parameters were built for, cut or clamped silently."""
    if not case.attention.traits.fixed_length:
        raise NotApplicable("traits.fixed_length is False")
    longer = jax.tree.map(
        lambda a: np.concatenate([a, a], axis=1),
        dataclasses.replace(case.part(slice(1), slice(None)), head_keys=None),
    )
    longer = dataclasses.replace(longer, head_keys=case.keys())
    return _refuses(
        case, longer, case.modes[0], f"{2 * case.length} tokens where built for {case.length}"
    )


def alibi(case: Case) -> str:
    """Slopes taken and ignored, or of another head, or with the wrong distance in a fast path."""
    if "alibi" not in case.attention.traits.positions:
        raise NotApplicable("traits.positions has no 'alibi'")
    slopes: Any = 2.0 ** -np.arange(case.heads)
    inputs = dataclasses.replace(case.inputs, slopes=slopes)
    both = quick(
        lambda p, i, c: (case.attention(p, i, causal=c), case.defined(p, i, c)[0]), static_argnums=2
    )
    worst = max(gap(*both(case.params, inputs, causal)) for causal in case.modes)
    return below(worst, case.tolerance, "with slopes it differs from its definition by")


def attention_dropout(case: Case) -> str:
    """Dropout taken and ignored, outside training, or that changes the mean."""
    traits, keys = case.attention.traits, 400
    if not traits.dropout:
        raise NotApplicable("traits.dropout is ''")
    causal = case.modes[-1]
    inputs = dataclasses.replace(case.part(slice(1), slice(SHORT), valid=False), dropout=0.25)
    still = _first_tokens(case, causal)
    run = quick(
        lambda p, i, key, train: case.attention(p, i, causal=causal, train=train, key=key),
        static_argnums=3,
    )
    if not np.array_equal(run(case.params, inputs, jax.random.key(0), False), still):
        raise Failed("with train=False a rate of 0.25 changes the output")
    many = quick(
        jax.vmap(
            lambda key: case.attention(case.params, inputs, causal=causal, train=True, key=key)
        )
    )
    noisy = np.asarray(many(jax.random.split(jax.random.key(case.seed), keys)), np.float64)
    spread = noisy.std(axis=0)
    if not (spread.reshape(SHORT, -1).max(axis=-1) > 1e-9).all():
        raise Failed("a rate of 0.25 in training changes nothing, for some token")
    if traits.stochastic:
        return f"drops {traits.dropout} in training only; its mean is not defined, as `key` draws more than that"
    off = np.abs(noisy.mean(axis=0) - still) / (spread * keys**-0.5 + 1e-9)
    return below(
        float(off.max()),
        6.0,
        f"drops {traits.dropout} in training only; mean off by standard errors",
    )


def refuses_what_it_cannot_take(case: Case) -> str:
    """Slopes or dropout that the traits do not cover, ignored silently."""
    given, told = case.part(slice(1), slice(SHORT)), []
    traits = case.attention.traits
    if "alibi" not in traits.positions:
        slopes: Any = np.ones(case.heads)
        told.append(
            _refuses(case, dataclasses.replace(given, slopes=slopes), case.modes[0], "slopes")
        )
    if not traits.dropout:
        told.append(
            _refuses(case, dataclasses.replace(given, dropout=0.5), case.modes[0], "dropout")
        )
    if not told:
        raise NotApplicable("it takes slopes and dropout")
    return "; ".join(told)


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
    refuses_the_other_mode,
    refuses_longer_inputs,
    refuses_what_it_cannot_take,
)
"""All of them, in the order of the report. `text_round_trip` also takes the table of names."""


def _matrix(case: Case) -> bool:
    return case.attention.traits.matrix


def _slope(case: Case, causal: bool) -> float:
    """The largest gradient of any input, or 1."""
    return max(np.abs(g).max() for g in case.results[causal][1][0].values()) or 1.0


def _rounded(case: Case, inputs: Inputs, *dtypes: Any) -> list[np.ndarray]:
    """Outputs for `inputs` in each of `dtypes`, without float64; in the last mode.

    The parameters are rounded to float32 here, which is why float32 is not held to its last digit.
    """
    causal = case.modes[-1]
    with jax.enable_x64(False):

        def each(params: Params, inputs: Inputs) -> list[jax.Array]:
            return [case.attention(params, _cast(inputs, dtype), causal=causal) for dtype in dtypes]

        return [
            np.asarray(out, np.float64)
            for out in quick(each)(_cast(case.params, np.float32), inputs)
        ]


def _padding_content(case: Case, example: int) -> str:
    valid, worst = np.asarray(case.inputs.valid), 0.0
    for causal in case.modes:
        changed = case.evaluate(case.replace(~valid), causal=causal)[0]
        worst = max(
            worst,
            gap(changed[example][valid[example]], case.results[causal][0][example][valid[example]]),
        )
    return below(worst, EXACT, "valid outputs change by")


def _first_tokens(case: Case, causal: bool) -> np.ndarray:
    """Output for the first `SHORT` tokens of the example without padding, compiled, `[1, SHORT, H,
    D]`."""
    cache = case.__dict__.setdefault("first_tokens", {})
    if causal not in cache:
        run = quick(lambda p, i: case.attention(p, i, causal=causal))
        cache[causal] = np.asarray(run(case.params, case.part(slice(1), slice(SHORT), valid=False)))
    return cache[causal]


def _refuses(case: Case, inputs: Inputs, causal: bool, what: str) -> str:
    try:
        jax.eval_shape(lambda p, i: case.attention(p, i, causal=causal), case.params, inputs)
    except InputError as error:
        return f"{what}: {error}"
    raise Failed(f"accepts {what}; it must raise InputError (see base.accept and base.fits)")


def _cast(tree: Any, dtype: Any) -> Any:
    """Floating arrays of `tree` in `dtype`; jax arrays inside a trace, numpy otherwise."""
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )


def _abstract(case: Case, shape: Shape) -> tuple[Any, Inputs]:
    """Parameters and inputs of `shape` in float32, as shapes only; no padding."""

    def array(*dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shape.batch, shape.length, *dims), jnp.float32)

    qkv = array(shape.heads, shape.head_dim)
    params = jax.eval_shape(lambda key: case.attention.init(key, shape), jax.random.key(0))
    keys = jax.eval_shape(lambda key: jax.random.split(key, shape.heads), jax.random.key(0))
    x = array(shape.model_dim) if "x" in case.reads else None
    return params, Inputs(qkv, qkv, qkv, x, None, keys)  # type: ignore[arg-type]


def _traced(case: Case, shape: Shape, causal: bool, gradients: bool) -> Any:
    """The program of one forward pass, or of its gradients by q, k and v, at `shape`."""

    def run(params: Params, inputs: Inputs) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(
                case.attention(params, dataclasses.replace(inputs, q=q, k=k, v=v), causal=causal)
            )

        return (jax.grad(loss, argnums=(0, 1, 2)) if gradients else loss)(
            inputs.q, inputs.k, inputs.v
        )

    return jax.make_jaxpr(run)(*_abstract(case, shape))


def _lowered(case: Case, shape: Shape, causal: bool) -> jax.stages.Lowered:
    return jax.jit(lambda p, i: case.attention(p, i, causal=causal)).lower(*_abstract(case, shape))
