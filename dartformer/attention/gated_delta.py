"""Gated DeltaNet: a linear recurrence that replaces what its state holds at a key, and forgets."""

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
from dartformer.attention.ssd import step_start
from dartformer.kernels.decay import delta_attention
from dartformer.kernels.delta_scan import (
    delta_scan_from,
    delta_scan_work,
    unit_vector,
)
from dartformer.kernels.recurrence import recurrence_weights
from dartformer.kernels.softmax import wide


@dataclass(frozen=True, repr=False)
class GatedDelta(KeepsState, Spelled):
    """Gated delta rule: S_i = a_i (I - b_i k_i k_i^T) S_{i-1} + b_i k_i v_i^T.

    The output is y_i = S_i^T q_i / sqrt(D), with |q| = |k| = 1. What the state holds at k_i is
    replaced by v_i, by the share b_i = sigmoid(w_b . x_i). The state forgets by
    a_i = exp(-A softplus(w_a . x_i + c)).

    Paper: Yang et al. 2025 (Gated DeltaNet), arXiv:2412.06464, section 3, equation 10; the delta
      rule of Schlag et al. 2021, arXiv:2102.11174.
    Own parameters: `alpha` `[H, E]` (w_a), `beta` `[H, E]` (w_b), `A_log` `[H]` (A = exp),
      `dt_bias` `[H]` (c).
    Cost: O(N (C + D) D) time in chunks of C = 32; state D x D. Memory O(N D), and for a gradient
      a state for each 256 tokens. No weight is divided by a sum. A TPU has a kernel of its own.
    Masks: an invalid token is not written and the state does not decay for it.
    Both ways: a second recurrence from the last token to the first, added, in which each token
      reads before it is written: the own token is counted once.
    Deviations: the short convolutions before it and the gate and norm behind it are left out
      (`model.branch_norm` is a norm for each head).
    """

    spelling: ClassVar[str] = "gated_delta"

    traits: ClassVar[Traits] = Traits(
        summary="linear recurrence that replaces what it holds at a key, and forgets",
        paper="Yang et al. 2025, arXiv:2412.06464",
        causal=True,
        reads=frozenset("qkvx"),
        positions=frozenset({"rotary"}),
        decodes=True,
        dropout="values",
    )

    def init(self, key: Array, shape: Shape) -> Params:
        """w of variance 1 / E, steps from 0.001 to 0.1, A from 1 to 16."""
        alpha, beta, bias, a = jax.random.split(key, 4)
        size = (shape.heads, shape.model_dim)
        return {
            "alpha": jax.random.normal(alpha, size) * shape.model_dim**-0.5,
            "beta": jax.random.normal(beta, size) * shape.model_dim**-0.5,
            "dt_bias": step_start(bias, (shape.heads,)),
            "A_log": jnp.log(jax.random.uniform(a, (shape.heads,), minval=1, maxval=16)),
        }

    def _gates(self, params: Params, inputs: Inputs) -> tuple[Array, Array]:
        """The log-decays and the shares b, `[B, N, H]`."""
        assert inputs.x is not None
        dtype = wide(inputs.q, inputs.k, inputs.x)
        x = inputs.x.astype(dtype)
        # a_i = exp(-A softplus(w_a . x_i + c)), kept as its logarithm; b_i = sigmoid(w_b . x_i).
        rate = jnp.exp(params["A_log"].astype(dtype))
        forget = jnp.einsum("bne,he->bnh", x, params["alpha"].astype(dtype))
        replace = jnp.einsum("bne,he->bnh", x, params["beta"].astype(dtype))
        decay = -rate * jax.nn.softplus(forget + params["dt_bias"].astype(dtype))
        return decay, jax.nn.sigmoid(replace)

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
        decay, beta = self._gates(params, inputs)
        # With unit keys, I - b k k^T shrinks along k and nowhere else: the state stays bounded.
        out = delta_attention(
            inputs.q,
            inputs.k,
            drop_values(inputs, train, key),
            decay,
            beta,
            causal=causal,
            valid=inputs.valid,
            kernel=inputs.kernel,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The recurrence, one token at a time, of the unit vectors, `[B, H, N, N]`."""
        decay, beta = self._gates(params, inputs)
        q = unit_vector(inputs.q) * inputs.q.shape[-1] ** -0.5
        k = unit_vector(inputs.k)
        return recurrence_weights(q, k, decay, beta=beta, causal=causal, valid=inputs.valid)

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The state S, `[B, H, D, D]`."""
        return {"state": state_array(shape, shape.head_dim, shape.head_dim, dtype)}

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        inputs = repeated(inputs)
        decay, beta = self._gates(params, inputs)
        out, state = delta_scan_from(
            cache["state"],
            inputs.q,
            inputs.k,
            inputs.v,
            decay,
            beta,
            valid=inputs.valid,
            unit=True,
            target=inputs.target,
        )
        return out, {"state": state}

    def cost(self, shape: Shape) -> Cost:
        """The scan, the gates of each token, and the norms of q and k."""
        heads = shape.batch * shape.heads
        tokens = heads * shape.length
        flops, numbers = delta_scan_work(shape.length, shape.head_dim)
        return Cost(
            flops=flops * heads + tokens * (4 * shape.model_dim + 12 + 8 * shape.head_dim),
            parameters=2 * shape.heads * (shape.model_dim + 1),
            activation_bytes=(numbers * heads + 2 * tokens) * shape.wide_itemsize,
            # Decoding keeps the state D x D, and no keys and values.
            state_bytes=heads * shape.head_dim**2 * shape.wide_itemsize,
        )
