"""The program of one attention alone, as a function and the shapes that it takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import Attention, Inputs, Params, Shape
from dartformer.kernels.target import Target


class Call(NamedTuple):
    """A function of (parameters, q, k, v, x) and valid, and the shapes of its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def gradient(
    attention: Attention,
    shape: Shape,
    target: Target,
    *,
    dtype: DTypeLike = jnp.bfloat16,
    causal: bool = False,
    masked: bool = True,
    order: int = 1,
    folded: bool = False,
) -> Call:
    """The gradient of the sum of an attention's squares by its parameters, q, k, v and x.

    Args:
      attention: any.
      shape: B, N, H, D, E.
      target: the device that it is for.
      dtype: of q, k, v and x.
      causal, masked: whether no token sees a later one, and whether there is a mask `[B, N]`.
      order: 2 for a derivative of the gradient, in the direction of the arguments.
      folded: q, k and v are `[B, N, H D]`, as a projection can leave them.
    """
    tokens = (shape.batch, shape.length)
    params = jax.eval_shape(lambda: attention.init(jax.random.key(0), shape))
    heads_of = (*tokens, shape.heads, shape.head_dim)
    q = jax.ShapeDtypeStruct(heads_of, dtype)
    if folded:
        q = jax.ShapeDtypeStruct((*tokens, shape.heads * shape.head_dim), dtype)
    x = jax.ShapeDtypeStruct((*tokens, shape.model_dim), dtype)
    valid = jax.ShapeDtypeStruct(tokens, jnp.bool_) if masked else None

    def loss(floats: tuple[Params, Array, Array, Array, Array], valid: Array | None) -> Array:
        params, q, k, v, x = floats
        key = jax.random.key(0)
        heads = jax.random.split(key, shape.heads)
        q, k, v = (array.reshape(heads_of) for array in (q, k, v))
        inputs = Inputs(q, k, v, x, valid, heads, target=target)
        out = attention(params, inputs, causal=causal, train=True, key=key)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    def second(floats: Any, valid: Array | None) -> Any:
        return jax.jvp(lambda floats: jax.grad(loss)(floats, valid), (floats,), (floats,))[1]

    function: Callable[..., Any] = jax.grad(loss)
    if order == 2:
        function = second
    return Call(function, ((params, q, q, q, x), valid))
