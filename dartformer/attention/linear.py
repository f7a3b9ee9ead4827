"""Linear attention: a positive feature map in place of the softmax."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.attention.base import Cost, Inputs, Params, Shape, Spelled, Traits, accept, drop_values, zero_invalid
from dartformer.errors import unknown
from dartformer.kernels.linear_scan import linear_attention, ratio
from dartformer.kernels.softmax import dense_allowed, wide


def elu_feature(x: Array) -> Array:
    """elu(x) + 1 in float32 or wider; as exp(x) below zero, where expm1(x) + 1 would lose all its digits.

    Its slope at zero is 1; `minimum` in place of the inner `where` would share the tie and make it 1/2.
    """
    x = x.astype(wide(x))
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def relu_feature(x: Array) -> Array:
    """max(x, 0), in float32 or wider."""
    return jax.nn.relu(x.astype(wide(x)))


FEATURES: dict[str, tuple[Callable[[Array], Array], int]] = {
    "elu": (elu_feature, 4), "relu": (relu_feature, 1)}
"""By name: phi, and its operations for each number, exponentials apart."""


@dataclass(frozen=True, repr=False)
class Linear(Spelled):
    """Kernel attention: y_i = phi(q_i)^T sum_j phi(k_j) v_j^T / phi(q_i)^T sum_j phi(k_j).

    Paper: Katharopoulos et al. 2020, arXiv:2006.16236, equations 5 and 7 (bidirectional), 9 to 12 (causal).
    Own parameters: none. Cost: O(N D^2) time, O(N D) memory; causal by a recurrence with a D x D state.
    Masks: features of invalid keys are zero, so they add nothing; causal sums over j <= i.
    Deviations: no epsilon is added to the denominator; where it is zero (relu only), so is the output.

    Attributes:
      feature: phi. "elu": elu(x) + 1, that of the paper. "relu": max(x, 0), which leaves out tokens entirely (as
        Choromanski et al. 2021, arXiv:2009.14794, section 4.1, without random features).
    """

    feature: Literal["elu", "relu"] = "elu"

    traits: ClassVar[Traits] = Traits(
        summary="features elu(x) + 1 or relu(x) in place of the softmax, linear in length",
        paper="Katharopoulos et al. 2020, arXiv:2006.16236", causal=True, dropout="values")

    def __post_init__(self) -> None:
        if self.feature not in FEATURES:
            raise unknown("feature of linear", self.feature, FEATURES)

    def features(self, inputs: Inputs) -> tuple[Array, Array]:
        """phi(q) and phi(k), `[B, N, H, D]`."""
        phi = FEATURES[self.feature][0]
        return phi(inputs.q), phi(inputs.k)

    def init(self, key: Array, shape: Shape) -> Params:
        """No parameters."""
        return {}

    def __call__(self, params: Params, inputs: Inputs, *, causal: bool = False, train: bool = False,
                 key: Array | None = None) -> Array:
        """See `Attention`."""
        accept(self, inputs, causal=causal)
        out = linear_attention(*self.features(inputs), drop_values(inputs, train, key), causal=causal,
                               valid=inputs.valid)
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """phi(q_i) . phi(k_j), rows divided by their sum, `[B, H, N, N]`."""
        products = jnp.einsum("bnhd,bkhd->bhnk", *self.features(inputs))
        allowed = dense_allowed(inputs.q.shape[1], causal=causal, valid=inputs.valid)
        if allowed is not None:
            products = jnp.where(allowed, products, 0)
        return ratio(products, products.sum(-1, keepdims=True)) * inputs.mask[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """Two products with the D x D state, and a few operations for each number of q, k and v."""
        numbers = shape.batch * shape.length * shape.heads * shape.head_dim
        state = shape.batch * shape.heads * shape.head_dim * (shape.head_dim + 1)
        wide_size = max(4, shape.itemsize)
        return Cost(
            flops=numbers * (4 * shape.head_dim + 8 + 2 * FEATURES[self.feature][1]),
            parameters=0,
            activation_bytes=(3 * numbers + state) * wide_size,
            state_bytes=state * wide_size)
