"""Retention: a linear recurrence in which every head forgets at a rate of its own."""

from dataclasses import dataclass
from typing import ClassVar

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
    zero_invalid,
)
from dartformer.attention.decoding import KeepsState, repeated, state_array
from dartformer.kernels.decay import decay_attention
from dartformer.kernels.decay_scan import decay_scan_from, decay_scan_work
from dartformer.kernels.recurrence import recurrence_weights
from dartformer.kernels.softmax import wide


@dataclass(frozen=True, repr=False)
class Retention(KeepsState, Spelled):
    """Retention: y_i = sum_{j<=i} gamma^(i - j) (q_i . k_j / sqrt(D)) v_j.

    Computed by the recurrence S_i = gamma S_{i-1} + k_i v_i^T.

    Paper: Sun et al. 2023 (RetNet), arXiv:2307.08621, equations 5 (parallel), 6 (recurrent) and 7
      (in chunks).
    Own parameters: `decay` `[H]`, with gamma = sigmoid(decay), at first the paper's 1 - 2^(-5-h)
      for head h.
    Cost: O(N (C + D) D) time in chunks of C = 64; state D x D. Memory O(N D), and for a gradient
      a state for each 256 tokens. No weight is divided by a sum.
    Masks: an invalid token is not written, and gamma is not applied for it: distances count valid
      tokens.
    Both ways: a second recurrence from the last token to the first, added; the own token is counted
      once, so the weight is gamma^|i - j|.
    Deviations: gamma is trained, where the paper fixes it. The paper's norm of each head behind it
      is the layer's (`model.branch_norm`), its rotation xPos is the layer's rotary positions, and
      its gate is left out.
    """

    traits: ClassVar[Traits] = Traits(
        summary="linear recurrence that forgets at a rate of each head",
        paper="Sun et al. 2023, arXiv:2307.08621",
        causal=True,
        positions=frozenset({"rotary"}),
        decodes=True,
        dropout="values",
    )

    def init(self, key: Array, shape: Shape) -> Params:
        """The paper's decays: sigmoid(log(2^(5+h) - 1)) = 1 - 2^(-5-h)."""
        head = jnp.arange(shape.heads, dtype=jnp.result_type(float))
        return {"decay": jnp.log(2.0 ** (5 + head) - 1)}

    def _decay(self, params: Params, inputs: Inputs) -> Array:
        """The log-decays `[B, N, H]`."""
        dtype = wide(inputs.q, inputs.k)
        # Learned, through a sigmoid: any value of the parameter is a decay between 0 and 1.
        decay = jax.nn.log_sigmoid(params["decay"].astype(dtype))
        # The same at every token: gamma is of the head.
        return jnp.broadcast_to(decay, inputs.q.shape[:3])

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
        out = decay_attention(
            inputs.q,
            inputs.k,
            drop_values(inputs, train, key),
            self._decay(params, inputs),
            causal=causal,
            valid=inputs.valid,
            scale=inputs.q.shape[-1] ** -0.5,
            kernel=inputs.kernel,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The recurrence, one token at a time, of the unit vectors, `[B, H, N, N]`."""
        decay = self._decay(params, inputs)
        q = inputs.q.astype(decay.dtype) * inputs.q.shape[-1] ** -0.5
        return recurrence_weights(q, inputs.k, decay, causal=causal, valid=inputs.valid)

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The state S, `[B, H, D, D]`."""
        return {"state": state_array(shape, shape.head_dim, shape.head_dim, dtype)}

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        inputs = repeated(inputs)
        out, state = decay_scan_from(
            cache["state"],
            inputs.q,
            inputs.k,
            inputs.v,
            self._decay(params, inputs),
            valid=inputs.valid,
            scale=inputs.q.shape[-1] ** -0.5,
            target=inputs.target,
        )
        return out, {"state": state}

    def cost(self, shape: Shape) -> Cost:
        """The scan, and the scale of q."""
        heads = shape.batch * shape.heads
        tokens = heads * shape.length
        flops, numbers = decay_scan_work(shape.length, shape.head_dim)
        return Cost(
            flops=flops * heads + tokens * shape.head_dim,
            parameters=shape.heads,
            activation_bytes=numbers * heads * shape.wide_itemsize,
            # Decoding keeps the state D x D, and no keys and values.
            state_bytes=heads * shape.head_dim**2 * shape.wide_itemsize,
        )
