"""A fast kernel with derivatives of every order and in both modes.

The kernel gives its output and its gradient. All else follows from a definition in plain JAX.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

Function = Callable[..., Array]
"""Arrays to the output, by their place. Every array leads with B, or is empty."""


class _Kernel(NamedTuple):
    """`fast` can be differentiated backwards and once only, `definition` any number of times.

    They are differentiated by the first `inputs` of their arrays.
    """

    fast: Function
    definition: Function
    inputs: int


def fused(fast: Function, definition: Function, inputs: int = 3) -> Function:
    """`fast` and its gradient, with the derivatives of both taken from `definition`.

    For kernels that can be differentiated backwards and once only. First-order search pays nothing
    for the others, and under `jax.vmap` the examples of all batches are those of one.

    Args:
      inputs: how many arrays can be differentiated by, from the first: q, k and v.
    """
    kernel = _Kernel(fast, definition, inputs)

    def function(*arrays: Array) -> Array:
        return _bind(_output, arrays, kernel)[0]

    return function


# Primitives, because JAX drops the rule of a `jax.custom_jvp` where it splits the body of a loop or
# of a checkpoint, and a `jax.custom_vjp` has no forward mode. Each computes a list of arrays.


def _compute_output(kernel: _Kernel, *arrays: Array) -> list[Array]:
    """The output."""
    return [kernel.fast(*arrays)]


def _compute_differentiated(kernel: _Kernel, *arrays: Array) -> list[Array]:
    """The output again, in the form in which the kernel leaves something to its gradient."""
    # As in `_compute_gradients`, whose forward pass is then this one to the compiler.
    return [_pull_back(kernel, kernel.fast, arrays)[0]]


def _compute_tangent(kernel: _Kernel, *operands: Array) -> list[Array]:
    """The output's derivative along the first `inputs` operands, at the others."""
    return [_derivative(kernel, operands[kernel.inputs :], operands[: kernel.inputs])]


def _compute_gradients(kernel: _Kernel, *operands: Array) -> list[Array]:
    """Those of the first `inputs` arrays, for all of them and the output's cotangent."""
    *arrays, cotangent = operands
    # The forward pass again: the compiler merges two that are equal, and rematerialization, where
    # they are apart, would run it again in any case.
    return list(_pull_back(kernel, kernel.fast, arrays)[1](cotangent))


def _pull_back(
    kernel: _Kernel, function: Function, arrays: Sequence[Array]
) -> tuple[Array, Callable[..., Any]]:
    """The output, and what takes its cotangent to the gradients."""
    at, others = arrays[: kernel.inputs], arrays[kernel.inputs :]
    return jax.vjp(lambda *at: function(*at, *others), *at)


def _derivative(kernel: _Kernel, arrays: Sequence[Array], directions: Sequence[Array]) -> Array:
    """The output's derivative along directions, by the definition."""
    at, others = tuple(arrays[: kernel.inputs]), arrays[kernel.inputs :]
    return jax.jvp(lambda *at: kernel.definition(*at, *others), at, tuple(directions))[1]


def _batched(
    primitive: Primitive,
    operands: Sequence[Array],
    axes: Sequence[int | None],
    *,
    kernel: _Kernel,
    jaxpr: ClosedJaxpr,
) -> tuple[list[Array], list[int]]:
    """The rule of `jax.vmap`: its axis joins that of the examples, `[V, B, ...]` to `[V B, ...]`."""
    size = 0
    for x, axis in zip(operands, axes, strict=True):
        if axis is not None:
            size = x.shape[axis]
    merged = []
    for x, axis in zip(operands, axes, strict=True):
        if axis is None:
            x = jnp.broadcast_to(x, (size, *x.shape))
        else:
            x = jnp.moveaxis(x, axis, 0)
        merged.append(x.reshape(size * x.shape[1], *x.shape[2:]))
    outputs = []
    for out in _bind(primitive, merged, kernel):
        outputs.append(out.reshape(size, out.shape[0] // size, *out.shape[1:]))
    return outputs, [0] * len(outputs)


_COMPUTED: dict[Primitive, Callable[..., list[Array]]] = {}
"""What each primitive computes, of a kernel and of its operands."""


def _primitive(name: str, compute: Callable[..., list[Array]]) -> Primitive:
    """A primitive that computes a list of arrays, without derivatives."""
    primitive = Primitive(f"fused_{name}")
    primitive.multiple_results = True
    _COMPUTED[primitive] = compute

    def run(*operands: Array, kernel: _Kernel, jaxpr: ClosedJaxpr) -> list[Array]:
        return list(jaxpr_as_fun(jaxpr)(*operands))

    def shapes(*operands: Any, kernel: _Kernel, jaxpr: ClosedJaxpr) -> list[Any]:
        return list(jaxpr.out_avals)

    primitive.def_impl(run)
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))
    batching.primitive_batchers[primitive] = functools.partial(_batched, primitive)
    return primitive


def _bind(primitive: Primitive, operands: Sequence[Any], kernel: _Kernel) -> list[Array]:
    """The results of a primitive, with its program where JAX finds what it needs of devices."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    # JAX sets no mesh in one pass and an empty one in the other. To its caches that is not the same,
    # and a function would be traced once for each.
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        jaxpr = jax.make_jaxpr(functools.partial(_COMPUTED[primitive], kernel))(*shapes)
    results: list[Array] = primitive.bind(*operands, kernel=kernel, jaxpr=jaxpr)
    return results


_output = _primitive("output", _compute_output)
_differentiated = _primitive("differentiated_output", _compute_differentiated)
_tangent = _primitive("tangent", _compute_tangent)
_gradients = _primitive("gradients", _compute_gradients)


def _dense(tangents: Sequence[Any]) -> list[Array]:
    """Tangents as arrays, where JAX has a symbol for zeros."""
    return [ad.instantiate_zeros(tangent) for tangent in tangents]


def _differentiate_output(
    arrays: Sequence[Array], tangents: Sequence[Any], *, kernel: _Kernel, jaxpr: ClosedJaxpr
) -> tuple[list[Array], list[Array]]:
    directions = _dense(tangents[: kernel.inputs])
    return _bind(_differentiated, arrays, kernel), _bind(_tangent, (*directions, *arrays), kernel)


def _differentiate_tangent(
    operands: Sequence[Array], tangents: Sequence[Any], *, kernel: _Kernel, jaxpr: ClosedJaxpr
) -> tuple[list[Array], list[Array]]:
    out = _bind(_tangent, operands, kernel)
    count = kernel.inputs
    arrays, others = operands[count:], operands[2 * count :]
    if all(type(tangent) is ad.Zero for tangent in tangents[count : 2 * count]):
        # It is linear in the directions.
        return out, _bind(_tangent, (*_dense(tangents[:count]), *arrays), kernel)

    def along(*operands: Array) -> Array:
        return _derivative(kernel, (*operands[count:], *others), operands[:count])

    at = tuple(operands[: 2 * count])
    return out, [jax.jvp(along, at, tuple(_dense(tangents[: 2 * count])))[1]]


def _transpose_tangent(
    cotangents: Sequence[Any], *operands: Any, kernel: _Kernel, jaxpr: ClosedJaxpr
) -> list[Array | None]:
    """This is where the kernel's own gradient comes in."""
    (cotangent,) = cotangents
    results: list[Array | None] = [None] * len(operands)
    if type(cotangent) is ad.Zero:
        return results
    gradients = _bind(_gradients, (*operands[kernel.inputs :], cotangent), kernel)
    for i, gradient in enumerate(gradients):
        if ad.is_undefined_primal(operands[i]):
            results[i] = gradient
    return results


def _differentiate_gradients(
    operands: Sequence[Array], tangents: Sequence[Any], *, kernel: _Kernel, jaxpr: ClosedJaxpr
) -> tuple[list[Array], list[Array]]:
    *arrays, cotangent = operands
    at, others = arrays[: kernel.inputs], arrays[kernel.inputs :]

    def gradients(cotangent: Array, *at: Array) -> Any:
        return _pull_back(kernel, kernel.definition, (*at, *others))[1](cotangent)

    directions = _dense((tangents[-1], *tangents[: kernel.inputs]))
    tangent = jax.jvp(gradients, (cotangent, *at), tuple(directions))[1]
    return _bind(_gradients, operands, kernel), list(tangent)


ad.primitive_jvps[_output] = _differentiate_output
ad.primitive_jvps[_differentiated] = _differentiate_output
ad.primitive_jvps[_tangent] = _differentiate_tangent
ad.primitive_transposes[_tangent] = _transpose_tangent
ad.primitive_jvps[_gradients] = _differentiate_gradients
