"""What each attention's outputs take from which tokens, on one small input."""

import dataclasses
from typing import Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.attention import Attention, Inputs, Shape
from dartformer.attention.base import Params

WIDTH = 16
"""Of each random vector."""


class Defined(Protocol):
    """An attention with a definition, which computes what the fast path approximates or equals."""

    def reference(self, params: Params, inputs: Inputs, *, causal: bool) -> Array:
        """`[B, N, H, D]`."""


@dataclasses.dataclass(frozen=True)
class Example:
    """An input of one sequence and one head, and the keys of the parameters.

    Attributes:
      inputs: each letter of the text is a random vector, which is query, key and input alike but
        for a little noise: letters attend to their like, as far as an attention lets them.
      shape: of the input.
      key: for the parameters of an attention.
    """

    inputs: Inputs
    shape: Shape
    key: Array

    @classmethod
    def of(cls, text: str, seed: int) -> "Example":
        """The input for a text of ASCII letters."""
        keys = iter(jax.random.split(jax.random.key(seed), 9))
        n = len(text)
        codes = np.frombuffer(text.encode("ascii"), np.uint8)
        letters = jax.random.normal(next(keys), (128, WIDTH))[codes]  # [N, D]
        # Near the vectors of the letters, so that equal letters still differ a little.
        q, k, x = (_noisy(letters, next(keys)) for _ in range(3))
        v = jax.random.normal(next(keys), (1, n, 1, WIDTH))
        inputs = Inputs(
            q[None, :, None],  # [B, N, H, D]
            k[None, :, None],
            v,
            x[None],  # [B, N, E]
            head_keys=jax.random.split(next(keys), 1),
        )
        shape = Shape(length=n, heads=1, head_dim=WIDTH, model_dim=WIDTH)
        return cls(inputs, shape, next(keys))


def _noisy(letters: Array, key: Array) -> Array:
    """Vectors near those of the letters: `[N, D]`."""
    return 1.1 * letters + 0.2 * jax.random.normal(key, letters.shape)


def matrix(attention: Attention, example: Example, *, causal: bool) -> np.ndarray:
    """`[N, N]`: the weights of an attention with the parameters of `init`.

    Of an attention that has no weights, how much each output changes with the value and the input
    of each token, by its definition.
    """
    params = attention.init(example.key, example.shape)
    causal = causal or not attention.traits.bidirectional
    weights = attention.weights(params, example.inputs, causal=causal)
    if weights is not None:
        return np.asarray(weights[0, 0])
    definition = cast(Defined, attention)

    def output(v: Array, x: Array) -> Array:
        changed = dataclasses.replace(example.inputs, v=v, x=x)
        return definition.reference(params, changed, causal=causal)[0, :, 0]  # [N, D]

    # [N, D, 1, N, 1, D] and [N, D, 1, N, E]: the derivatives by v and by x.
    by_v, by_x = jax.jacobian(output, (0, 1))(example.inputs.v, example.inputs.x)
    squares_v = jnp.sum(by_v[:, :, 0, :, 0] ** 2, (1, 3))
    squares_x = jnp.sum(by_x[:, :, 0] ** 2, (1, 3))
    return np.asarray(jnp.sqrt(squares_v + squares_x))
