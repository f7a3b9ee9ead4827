"""SSD: the state space of Mamba-2, a linear recurrence with steps that depend on the token."""

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


def step_start(key: Array, shape: tuple[int, ...]) -> Array:
    """softplus^-1 of step sizes with uniform logarithms, from 0.001 to 0.1, as Mamba begins."""
    step = 0.001 * 100.0 ** jax.random.uniform(key, shape)
    return jnp.log(jnp.expm1(step))


@dataclass(frozen=True, repr=False)
class Ssd(KeepsState, Spelled):
    """State space: S_i = exp(-A dt_i) S_{i-1} + dt_i k_i v_i^T, y_i = S_i^T q_i + D v_i.

    The steps are dt_i = softplus(w . x_i + b).

    Paper: Dao and Gu 2024 (Mamba-2), arXiv:2405.21060, sections 2.1, 5 and 6; q, k, v are its C, B,
      x.
    Own parameters: `dt` `[H, E]` (w), `dt_bias` `[H]` (b), `A_log` `[H]` (A = exp), `D` `[H]`; they
      begin as there.
    Cost: O(N (C + D) D) time in chunks of C = 64; state D x D. Memory O(N D), and for a gradient
      a state for each 256 tokens. No weight is divided by a sum.
    Masks: an invalid token is not written and the state does not decay for it.
    Both ways: a second recurrence from the last token to the first, added; the own token is counted
      once.
    Deviations: the short convolution before it and the gate and norm behind it are left out
      (`model.branch_norm` is a norm for each head), and every head has its own q and k, where the
      paper shares B and C between heads.
    """

    traits: ClassVar[Traits] = Traits(
        summary="Mamba-2's state space: steps and decays that depend on the token",
        paper="Dao and Gu 2024, arXiv:2405.21060",
        causal=True,
        reads=frozenset("qkvx"),
        positions=frozenset({"rotary"}),
        decodes=True,
        dropout="values",
    )

    def init(self, key: Array, shape: Shape) -> Params:
        """w of variance 1 / E, steps from 0.001 to 0.1, A from 1 to 16, D = 1."""
        w, b, a = jax.random.split(key, 3)
        size = (shape.heads, shape.model_dim)
        rate = jax.random.uniform(a, (shape.heads,), minval=1, maxval=16)
        return {
            "dt": jax.random.normal(w, size) * shape.model_dim**-0.5,
            "dt_bias": step_start(b, (shape.heads,)),
            "A_log": jnp.log(rate),
            "D": jnp.ones(shape.heads),
        }

    def _steps(self, params: Params, inputs: Inputs) -> tuple[Array, Array]:
        """dt and the log-decays, `[B, N, H]`."""
        assert inputs.x is not None
        dtype = wide(inputs.q, inputs.k, inputs.x)
        x = inputs.x.astype(dtype)
        projected = jnp.einsum("bne,he->bnh", x, params["dt"].astype(dtype))
        step = jax.nn.softplus(projected + params["dt_bias"].astype(dtype))
        rate = jnp.exp(params["A_log"].astype(dtype))
        # Discretised as in Mamba-2: B dt for the input, exp(-A dt) for the decay.
        return step, -rate * step

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
        step, decay = self._steps(params, inputs)
        v = drop_values(inputs, train, key)
        out = decay_attention(
            inputs.q,
            inputs.k,
            v,
            decay,
            causal=causal,
            valid=inputs.valid,
            write=step,
            dtype=decay.dtype,
            kernel=inputs.kernel,
            target=inputs.target,
        )
        out = out + params["D"].astype(decay.dtype)[:, None] * v
        return zero_invalid(out.astype(inputs.v.dtype), inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The recurrence of the unit vectors, token by token, and D on the diagonal.

        Returns `[B, H, N, N]`.
        """
        step, decay = self._steps(params, inputs)
        k = inputs.k * step[..., None]
        rows = recurrence_weights(inputs.q, k, decay, causal=causal, valid=inputs.valid)
        eye = jnp.eye(inputs.q.shape[1], dtype=rows.dtype)
        skip = params["D"].astype(rows.dtype)[:, None, None] * eye
        return rows + skip * inputs.mask[:, None, :, None]

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The state S, `[B, H, D, D]`."""
        return {"state": state_array(shape, shape.head_dim, shape.head_dim, dtype)}

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        inputs = repeated(inputs)
        step, decay = self._steps(params, inputs)
        out, state = decay_scan_from(
            cache["state"],
            inputs.q,
            inputs.k,
            inputs.v,
            decay,
            valid=inputs.valid,
            write=step,
            target=inputs.target,
        )
        skip = params["D"].astype(decay.dtype)[:, None] * inputs.v
        return out + skip, {"state": state}

    def cost(self, shape: Shape) -> Cost:
        """The scan, the step of each token, and the skip."""
        heads = shape.batch * shape.heads
        tokens = heads * shape.length
        flops, numbers = decay_scan_work(shape.length, shape.head_dim)
        return Cost(
            flops=flops * heads + tokens * (2 * shape.model_dim + 6 + 3 * shape.head_dim),
            parameters=shape.heads * (shape.model_dim + 3),
            activation_bytes=(numbers * heads + tokens) * shape.wide_itemsize,
            # Decoding keeps the state D x D, and no keys and values.
            state_bytes=heads * shape.head_dim**2 * shape.wide_itemsize,
        )
