"""Linear attention: positive features in place of the softmax."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

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
    zero_invalid,
)
from dartformer.attention.decoding import KeepsState, repeated, state_array
from dartformer.errors import unknown
from dartformer.kernels.linear_scan import (
    Sums,
    linear_attention,
    linear_attention_from,
    linear_weights,
)
from dartformer.kernels.log_linear import (
    LogSums,
    log_linear_attention,
    log_linear_attention_from,
    log_linear_weights,
    no_sums,
)
from dartformer.kernels.softmax import dense_allowed, wide

Feature = Literal["elu", "relu", "exp", "softmax", "hedgehog"]

FEATURE_FLOOR = 1e-12
"""The least value of a learned feature, as in the code of LoLCATs: no query then loses all keys."""


def elu_feature(x: Array) -> Array:
    """elu(x) + 1 in float32 or wider.

    It is exp(x) below zero, where expm1(x) + 1 would lose all its digits. Its slope at zero is 1;
    `minimum` in place of the inner `where` would share the tie and make it 1/2.
    """
    x = x.astype(wide(x))
    below = jnp.where(x > 0, 0, x)  # keeps exp from overflowing where it is not used
    return jnp.where(x > 0, x + 1, jnp.exp(below))


def feature_matrices(key: Array, shape: Shape, features: int | None = None) -> Params:
    """`W_q` and `W_k` `[H, D, features]` of `learned_feature`, equal at the start.

    They are random with variance 1 / D, so that scores are as large as the numbers of q and k.
    """
    size = (shape.heads, shape.head_dim, features or shape.head_dim)
    scale = shape.head_dim**-0.5
    # Drawn twice from one key: two arrays, either of which may be given away.
    return {
        "W_q": scale * jax.random.normal(key, size),
        "W_k": scale * jax.random.normal(key, size),
    }


def learned_feature(x: Array, w: Array) -> Array:
    """[softmax(W x), softmax(-W x)] of each head, in float32 or wider, at least 1e-12.

    Paper: Zhang et al. 2024 (Hedgehog), arXiv:2402.04347.

    Args:
      x: `[B, N, H, D]`.
      w: `[H, D, M]`.

    Returns:
      `[B, N, H, 2 M]`.
    """
    dtype = wide(x, w)
    # Heads first: on a CPU one product of plain matrices for each of them.
    x = x.astype(dtype).swapaxes(1, 2)  # [B, H, N, D]
    scores = jnp.einsum("bhnd,hdm->bhnm", x, w.astype(dtype))
    both = jnp.concatenate([jax.nn.softmax(scores), jax.nn.softmax(-scores)], axis=-1)
    return jnp.maximum(both, FEATURE_FLOOR).swapaxes(1, 2)


@dataclass(frozen=True, repr=False)
class Linear(KeepsState, Spelled):
    """Kernel attention: y_i = phi(q_i)^T sum_j phi(k_j) v_j^T / phi(q_i)^T sum_j phi(k_j).

    Paper: Katharopoulos et al. 2020, arXiv:2006.16236, equations 5 and 7 (bidirectional), 9 to 12
      (causal).
    Own parameters: none; for "hedgehog" `W_q`, `W_k` `[H, D, D]`.
    Cost: O(N D^2) time, O(N D) memory; causal by a recurrence with a D x D state (2 D x D for
      "hedgehog"), and 16 N D exponentials more for "exp" and "softmax".
    Positions: "hedgehog" reads q and k that rotary positions have turned, as in LoLCATs (Zhang et
      al. 2024, arXiv:2410.10254). Its weights then depend on where tokens are, and not on their
      distance alone.
    Masks: features of invalid keys are zero, so they add nothing; causal sums over j <= i.
    Deviations: no epsilon is added to the denominator. It is positive wherever a key is seen, but
      for "relu": where no feature of a query meets one of a key, the output is zero. "exp" and
      "softmax" are computed from their logarithms, and do not overflow.

    Attributes:
      feature: phi. "elu": elu(x) + 1, that of the paper. "relu": max(x, 0), which leaves out tokens
        entirely (as Choromanski et al. 2021, arXiv:2009.14794, section 4.1, without random
        features). "exp": exp(x), which may weigh one token far above the others. "softmax": exp(x)
        / sum_d exp(x_d), so that no key weighs more for its size. "hedgehog": [softmax(W x),
        softmax(-W x)] with learned W, which can take the place of a trained softmax (Zhang et al.
        2024, arXiv:2402.04347).
    """

    feature: Feature = "elu"

    traits: ClassVar[FieldTraits] = FieldTraits(
        Traits(
            summary="positive features in place of the softmax, linear in length",
            paper="Katharopoulos et al. 2020, arXiv:2006.16236",
            causal=True,
            positions=frozenset({"rotary"}),
            decodes=True,
            cross=True,
            dropout="values",
        ),
        lambda linear: linear.feature_traits(),
    )

    def __post_init__(self) -> None:
        if self.feature not in get_args(Feature):
            raise unknown("feature of linear", self.feature, get_args(Feature))

    def feature_traits(self) -> Traits:
        """The traits of the feature: only "hedgehog" takes rotary positions."""
        traits = type(self).traits
        if self.feature == "hedgehog":
            return traits
        return dataclasses.replace(traits, positions=frozenset())

    def init(self, key: Array, shape: Shape) -> Params:
        """No parameters; for "hedgehog" random W, the same for queries and keys."""
        if self.feature == "hedgehog":
            return feature_matrices(key, shape)
        return {}

    def phi(self, x: Array, w: Array | None = None) -> Array:
        """The features of x, or for "exp" and "softmax" their logarithms.

        w is that of "hedgehog".
        """
        if w is not None:
            return learned_feature(x, w)
        x = x.astype(wide(x))
        if self.feature == "elu":
            return elu_feature(x)
        if self.feature == "relu":
            return jax.nn.relu(x)
        if self.feature == "exp":
            return x
        # Logarithms: features of peaked rows underflow, and their sums would be 0 / 0.
        return jax.nn.log_softmax(x)

    @property
    def exponential(self) -> bool:
        """Whether `phi` gives logarithms."""
        return self.feature in ("exp", "softmax")

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
        k = self.phi(inputs.k, params.get("W_k"))
        v = drop_values(inputs, train, key)
        if self.exponential:
            # Without the normaliser of "softmax" for q: what is the same for all features of a
            # query cancels.
            out = log_linear_attention(
                inputs.q, k, v, causal=causal, valid=inputs.valid, target=inputs.target
            )
        else:
            q = self.phi(inputs.q, params.get("W_q"))
            out = linear_attention(q, k, v, causal=causal, valid=inputs.valid, target=inputs.target)
        return zero_invalid(out, inputs.query_mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """phi(q_i) . phi(k_j), rows divided by their sum, `[B, H, N, N]`."""
        allowed = dense_allowed(inputs.q.shape[1], causal=causal, valid=inputs.valid)
        phi_q = self.phi(inputs.q, params.get("W_q"))
        phi_k = self.phi(inputs.k, params.get("W_k"))
        if self.exponential:
            rows = log_linear_weights(phi_q, phi_k, allowed)
        else:
            rows = linear_weights(phi_q, phi_k, allowed)
        return rows * inputs.query_mask[:, None, :, None]

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The sums over keys, `[B, H, D, D]` and `[B, H, D, 1]`, or 2 D rows for "hedgehog".

        For "exp" and "softmax" also the largest logarithms, `[B, H, D, 1]`.
        """
        state = state_array(shape, self._rows(shape), shape.head_dim, dtype)
        if self.exponential:
            return no_sums(state)._asdict()
        return Sums(state, state[..., :1])._asdict()

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        inputs = repeated(inputs)
        k = self.phi(inputs.k, params.get("W_k"))
        if self.exponential:
            out, log_sums = log_linear_attention_from(
                LogSums(**cache), inputs.q, k, inputs.v, valid=inputs.valid, target=inputs.target
            )
            return out, log_sums._asdict()
        q = self.phi(inputs.q, params.get("W_q"))
        out, sums = linear_attention_from(
            Sums(**cache), q, k, inputs.v, valid=inputs.valid, target=inputs.target
        )
        return out, sums._asdict()

    def _rows(self, shape: Shape) -> int:
        """Rows of the state: features of a head."""
        if self.feature == "hedgehog":
            return 2 * shape.head_dim
        return shape.head_dim

    def cost(self, shape: Shape) -> Cost:
        """Two products with the state, 16 operations for each feature of q and k, and those of W."""
        tokens = shape.batch * shape.length * shape.heads
        rows = self._rows(shape)
        # sum phi(k) v^T and sum phi(k), which decoding keeps, and for logarithms the largest.
        columns = shape.head_dim + 1 + self.exponential
        state = shape.batch * shape.heads * rows * columns
        flops = tokens * rows * (4 * shape.head_dim + 16)
        parameters = 0
        if self.feature == "hedgehog":
            flops += tokens * 4 * shape.head_dim**2  # W q and W k
            parameters = 2 * shape.heads * shape.head_dim**2
        numbers = tokens * (2 * rows + shape.head_dim)
        return Cost(
            flops=flops,
            parameters=parameters,
            activation_bytes=(numbers + state) * shape.wide_itemsize,
            state_bytes=state * shape.wide_itemsize,
        )
