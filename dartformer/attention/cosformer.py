"""cosFormer: linear attention of ReLU features, re-weighted by a cosine of the distance."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    Cache,
    Cost,
    FieldTraits,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    drop_values,
    fits,
    not_negative,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsState, positions, repeated, state_array
from dartformer.kernels.linear_scan import Sums, linear_attention, linear_attention_from, ratio
from dartformer.kernels.softmax import dense_allowed, wide


@dataclass(frozen=True, repr=False)
class Cosformer(KeepsState, Spelled):
    """y_i = sum_j w_ij v_j / sum_j w_ij with w_ij = relu(q_i) . relu(k_j) cos(pi (i - j) / 2M).

    As cos(a - b) = cos a cos b + sin a sin b, this is linear attention of 2D features, none of them
    negative where i and j lie in a span of M tokens.

    Paper: Qin et al. 2022, arXiv:2202.08791, the re-weighting by a cosine of section 3.
    Own parameters: none.
    Cost: O(N D^2) time, O(N D) memory; causal by a recurrence with a 2D x D state.
    Masks: features of invalid keys are zero, so they add nothing; causal sums over j <= i. Without
      a `horizon`, M is the number of tokens from the first valid one of each example to the last:
      padding a batch further changes nothing. Causal outputs then depend on how many tokens follow,
      though not on which; with one they do not.
    Deviations: no epsilon bounds the denominator; where no feature of a query meets one of a key,
      the output is zero.

    Attributes:
      horizon: M, and the longest input, longer ones being refused; 0 for the length of each
        example, as in the paper.
    """

    horizon: int = 0

    traits: ClassVar[FieldTraits] = FieldTraits(
        Traits(
            summary="ReLU features, weighed by the cosine of the distance",
            paper="Qin et al. 2022, arXiv:2202.08791",
            causal=True,
            decodes=True,
            dropout="values",
        ),
        lambda cosformer: cosformer.horizon_traits(),
    )

    def __post_init__(self) -> None:
        not_negative(self, horizon=self.horizon)

    def horizon_traits(self) -> Traits:
        """Without a horizon, weights depend on how many tokens follow: it cannot decode."""
        return dataclasses.replace(type(self).traits, decodes=self.horizon > 0)

    def init(self, key: Array, shape: Shape) -> Params:
        """No parameters."""
        return {}

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        *,
        causal: bool = False,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """See `Attention`."""
        accept(self, inputs, causal=causal)
        angle = self.angles(inputs)
        out = linear_attention(
            _turned(inputs.q, angle),
            _turned(inputs.k, angle),
            drop_values(inputs, train, key),
            causal=causal,
            valid=inputs.valid,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.mask)

    def angles(self, inputs: Inputs) -> Array:
        """pi i / 2M, with i counted from where the example begins, `[B or 1, N, 1, 1]`.

        In float32 or wider.
        """
        length = inputs.q.shape[1]
        if self.horizon:
            fits(self, length, self.horizon)
        position = jnp.arange(length, dtype=wide(inputs.q))[None]
        start = jnp.zeros((1, 1), position.dtype)
        span = jnp.full((1, 1), self.horizon or length, position.dtype)
        if inputs.valid is not None and not self.horizon:
            # M of each example, from its first valid token to its last: padding must not change
            # the angles.
            start = jnp.min(jnp.where(inputs.valid, position, length - 1), axis=1, keepdims=True)
            last = jnp.max(jnp.where(inputs.valid, position, 0), axis=1, keepdims=True)
            span = jnp.maximum(last - start + 1, 1)
        angle = (position - start) / span * (math.pi / 2)
        return angle[:, :, None, None]

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """relu(q_i) . relu(k_j) cos(pi (i - j) / 2M), rows divided by their sum, `[B, H, N, N]`."""
        angle = self.angles(inputs)[:, :, 0, 0]
        q = jax.nn.relu(inputs.q.astype(wide(inputs.q)))
        k = jax.nn.relu(inputs.k.astype(wide(inputs.k)))
        cosine = jnp.cos(angle[:, :, None] - angle[:, None])  # [B or 1, N, N]
        products = jnp.einsum("bnhd,bkhd->bhnk", q, k) * cosine[:, None]
        allowed = dense_allowed(inputs.q.shape[1], causal=causal, valid=inputs.valid)
        if allowed is not None:
            products = jnp.where(allowed, products, 0)
        rows = ratio(products, products.sum(-1, keepdims=True))
        return rows * inputs.mask[:, None, :, None]

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The sums over keys, `[B, H, 2 D, D]` and `[B, H, 2 D, 1]`."""
        fits(self, shape.length, self.horizon)
        state = state_array(shape, 2 * shape.head_dim, shape.head_dim, dtype)
        return Sums(state, state[..., :1])._asdict()

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        inputs = repeated(inputs)
        position = positions(inputs).astype(wide(inputs.q))
        angle = (position / self.horizon * (math.pi / 2))[:, :, None, None]
        out, sums = linear_attention_from(
            Sums(**cache),
            _turned(inputs.q, angle),
            _turned(inputs.k, angle),
            inputs.v,
            valid=inputs.valid,
            target=inputs.target,
        )
        return out, sums._asdict()

    def cost(self, shape: Shape) -> Cost:
        """Two products with the 2D x D state, and 14 operations for each number of q, k and v."""
        numbers = shape.batch * shape.length * shape.heads * shape.head_dim
        # sum phi(k) v^T and sum phi(k), which decoding keeps.
        state = 2 * shape.batch * shape.heads * shape.head_dim * (shape.head_dim + 1)
        return Cost(
            flops=numbers * (8 * shape.head_dim + 14),
            parameters=0,
            activation_bytes=(5 * numbers + state) * shape.wide_itemsize,
            state_bytes=state * shape.wide_itemsize,
        )


def _turned(x: Array, angle: Array) -> Array:
    """Features of x `[B, N, H, D]`: relu(x) cos a and relu(x) sin a, `[B, N, H, 2 D]`."""
    x = jax.nn.relu(x.astype(wide(x)))
    # Ptolemy: cos(a - b) = cos a cos b + sin a sin b, so that the weight of a distance becomes a
    # product of features.
    cosine = x * jnp.cos(angle).astype(x.dtype)
    sine = x * jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([cosine, sine], axis=-1)
