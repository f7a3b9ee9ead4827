"""Performer: random features whose products are, in the mean, those of the softmax."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    Cache,
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    drop_values,
    head_keys,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsState, repeated, state_array
from dartformer.errors import InputError, unknown
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
from dartformer.kernels.target import Target, here

Kernel = Literal["softmax", "relu"]

RELU_FLOOR = 1e-3
"""Added to ReLU features, as in the code of the paper: otherwise a query may meet no key."""


@dataclass(frozen=True, repr=False)
class Performer(KeepsState, Spelled):
    """FAVOR+: y_i = phi(q_i)^T sum_j phi(k_j) v_j^T / phi(q_i)^T sum_j phi(k_j).

    phi(x) = exp(W x' - |x'|^2 / 2) with x' = x / D^(1/4), and the rows of W `[features, D]` are
    Gaussian, orthogonal within each D of them. Over W, the mean of phi(q) . phi(k) / features is
    exp(q . k / sqrt(D)): with many features this is full attention. The kernel "relu" has
    phi(x) = max(W x', 0) + 0.001 instead.

    Paper: Choromanski et al. 2021, arXiv:2009.14794, equation 5, lemma 1 and section 2.4; "relu" is
      its generalised attention.
    Own parameters: none.
    Cost: O(N m D) time, O(N (m + D)) memory; causal by a recurrence with an m x D state, and 16 N m
      exponentials more.
    Randomness: W of a head depends on its key in `Inputs.head_keys` and on nothing else: it is the
      same in training, evaluation, after a restart, and in a derived model. With `redraw`, some
      training steps use another W, from the key of the step and that of the head; evaluation never
      does. There is no state: whether and what a step draws comes from its key alone. A resumed
      training draws what an uninterrupted one would.
    Masks: features of invalid keys are zero, so they add nothing; causal sums over j <= i.
    Deviations: softmax features are computed from their logarithms, each relative to its largest
      value max(W k - |k|^2 / 2) over the valid keys (those up to the query if causal), which
      cancels; nothing is added to features or denominator. The usual max(W k), with 1e-4 added,
      turns large keys into a uniform mean without a gradient. W is redrawn for single steps, and
      not kept for many.

    Attributes:
      features: m. The error falls with its root, and grows with the exponential of |q|^2 and |k|^2.
      kernel: "softmax" or "relu".
      redraw: share of the training steps that draw another W, 0 to 1.
    """

    features: int = 64
    kernel: Kernel = "softmax"
    redraw: float = 0.0

    traits: ClassVar[Traits] = Traits(
        summary="random features of the softmax kernel, linear in length",
        paper="Choromanski et al. 2021, arXiv:2009.14794",
        causal=True,
        stochastic=True,
        decodes=True,
        cross=True,
        dropout="values",
    )

    def __post_init__(self) -> None:
        positive(self, features=self.features)
        if self.kernel not in get_args(Kernel):
            raise unknown("kernel of performer", self.kernel, get_args(Kernel))
        if not 0 <= self.redraw <= 1:
            raise InputError(
                f"performer: redraw must be a number from 0 to 1, got {self.redraw!r}."
            )

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
        """See `Attention`.

        Raises:
          InputError: `inputs.head_keys` is None; or in training with `redraw`, `key` is.
        """
        accept(self, inputs, causal=causal)
        phi_q, phi_k = self.phi(inputs, self.keys(inputs, train, key))
        v = drop_values(inputs, train, key)
        if self.kernel == "softmax":
            out = log_linear_attention(
                phi_q, phi_k, v, causal=causal, valid=inputs.valid, target=inputs.target
            )
        else:
            out = linear_attention(
                phi_q, phi_k, v, causal=causal, valid=inputs.valid, target=inputs.target
            )
        return zero_invalid(out, inputs.query_mask)

    def keys(self, inputs: Inputs, train: bool = False, key: Array | None = None) -> Array:
        """Of each head, what its W is drawn from, `[H]`."""
        keys = head_keys(self, inputs)
        if not train or self.redraw == 0:
            return keys
        if key is None:
            raise InputError(
                f"{self!r} redraws its features in training and needs a PRNG key, got None."
            )
        coin, step = jax.random.split(jax.random.fold_in(key, 1))  # apart from the noise of dropout
        redraw = jax.random.bernoulli(coin, self.redraw)

        def drawn(head: Array) -> Array:
            # From the key of the step and that of the head: heads stay different.
            new = jax.random.fold_in(step, jax.random.bits(head))
            data = jnp.where(redraw, jax.random.key_data(new), jax.random.key_data(head))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(head))

        return jax.vmap(drawn)(keys)

    def phi(self, inputs: Inputs, keys: Array) -> tuple[Array, Array]:
        """Features of q and k, `[B, N, H, features]`; of "softmax" their logarithms."""
        dtype = wide(inputs.q, inputs.k)
        return self._features(inputs, projections(keys, self.features, inputs.q.shape[-1], dtype))

    def _features(self, inputs: Inputs, w: Array) -> tuple[Array, Array]:
        """`phi` for W `[H, features, D]`."""
        width = inputs.q.shape[-1]
        # Half of the scale 1 / sqrt(D) each: phi(q) . phi(k) estimates exp(q . k / sqrt(D)).
        q = inputs.q.astype(w.dtype) * width**-0.25
        k = inputs.k.astype(w.dtype) * width**-0.25
        # Heads come first, [B, H, N, D], until all features are computed: XLA then need not turn
        # the arrays of features, which are the largest.
        q, k = q.swapaxes(1, 2), k.swapaxes(1, 2)
        target = inputs.target or here()
        phi_q = _project(q, w, target)
        phi_k = _project(k, w, target)
        if self.kernel == "softmax":
            # |q|^2 / 2 is the same for all features of a query and cancels; that of keys does not.
            phi_k = phi_k - jnp.sum(k * k, axis=-1, keepdims=True) / 2
        else:
            phi_q = jax.nn.relu(phi_q) + RELU_FLOOR
            phi_k = jax.nn.relu(phi_k) + RELU_FLOOR
        return phi_q.swapaxes(1, 2), phi_k.swapaxes(1, 2)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """phi(q_i) . phi(k_j), rows divided by their sum, `[B, H, N, N]`."""
        allowed = dense_allowed(inputs.q.shape[1], causal=causal, valid=inputs.valid)
        phi_q, phi_k = self.phi(inputs, self.keys(inputs))
        if self.kernel == "softmax":
            rows = log_linear_weights(phi_q, phi_k, allowed)
        else:
            rows = linear_weights(phi_q, phi_k, allowed)
        return rows * inputs.query_mask[:, None, :, None]

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The sums of `linear` over the features, and W `[H, features, D]`, drawn once.

        Raises:
          InputError: `head_keys` is None.
        """
        if head_keys is None:
            raise InputError(f"{self!r} is random: init_cache needs head_keys, got None.")
        state = state_array(shape, self.features, shape.head_dim, dtype)
        w = projections(head_keys, self.features, shape.head_dim, state.dtype)
        if self.kernel == "softmax":
            return {**no_sums(state)._asdict(), "W": w}
        return {**Sums(state, state[..., :1])._asdict(), "W": w}

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        inputs = repeated(inputs)
        w = cache["W"]
        kept = {name: array for name, array in cache.items() if name != "W"}
        phi_q, phi_k = self._features(inputs, w)
        if self.kernel == "softmax":
            out, log_sums = log_linear_attention_from(
                LogSums(**kept), phi_q, phi_k, inputs.v, valid=inputs.valid, target=inputs.target
            )
            return out, {**log_sums._asdict(), "W": w}
        out, sums = linear_attention_from(
            Sums(**kept), phi_q, phi_k, inputs.v, valid=inputs.valid, target=inputs.target
        )
        return out, {**sums._asdict(), "W": w}

    def cost(self, shape: Shape) -> Cost:
        """Two products with W, two with the m x D state, 10 for each feature, and drawing W."""
        tokens = shape.batch * shape.length * shape.heads
        numbers = tokens * self.features
        # sum phi(k) v^T and sum phi(k), which decoding keeps; for logarithms the largest; and W.
        rows = shape.heads * self.features
        state = shape.batch * rows * (shape.head_dim + 1)
        kept = state + rows * shape.head_dim
        if self.kernel == "softmax":
            kept += shape.batch * rows
        squares = -(-self.features // shape.head_dim)
        drawn = shape.heads * squares * shape.head_dim**2
        return Cost(
            flops=numbers * (8 * shape.head_dim + 10) + tokens * 6 * shape.head_dim + drawn * 144,
            parameters=0,
            activation_bytes=(2 * numbers + state) * shape.wide_itemsize,
            state_bytes=kept * shape.wide_itemsize,
        )


def _project(x: Array, w: Array, target: Target) -> Array:
    """W x of each head, `[B, H, N, features]`, of x `[B, H, N, D]`.

    By one product of plain matrices for each head; on a CPU for each head of each example, because
    the result of the other form is `[H, features, B N]`.
    """
    if target.accelerated:
        return jnp.einsum("bhnd,hmd->bhnm", x, w)
    return jnp.einsum("bhnd,bhmd->bhnm", x, jnp.broadcast_to(w, (x.shape[0], *w.shape)))


def projections(keys: Array, features: int, width: int, dtype: jnp.dtype) -> Array:
    """W of each head, `[H, features, width]`, with rows as long as those of a Gaussian.

    Rows are orthogonal within each `width` of them. The same in float32 and float64 but for
    rounding.
    """
    shape = (-(-features // width), width, width)

    def head_bits(key: Array) -> Array:
        return jax.random.bits(key, shape, "uint32")

    # 23 bits for each number; those of jax.random.normal differ with the dtype.
    bits = jax.vmap(head_bits)(keys) >> 9
    uniform = (bits.astype(dtype) + 0.5) * 2.0**-22 - 1  # in (-1, 1)
    gaussian = 2**0.5 * jax.lax.erf_inv(uniform)
    q, r = jnp.linalg.qr(gaussian)
    # Directions of columns are independent of their lengths. With the signs of r, q is a uniform
    # rotation.
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1)
    lengths = jnp.linalg.norm(gaussian, axis=-2) * signs
    rows = (q * lengths[..., None, :]).swapaxes(-1, -2)
    return jax.lax.stop_gradient(rows.reshape(len(keys), -1, width)[:, :features])
