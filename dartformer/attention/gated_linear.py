"""Gated linear attention: a linear recurrence that forgets each channel as the token says."""

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
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsState, repeated, state_array
from dartformer.errors import InputError
from dartformer.kernels.decay import gated_attention
from dartformer.kernels.gated_scan import gated_scan_from, gated_scan_work
from dartformer.kernels.recurrence import recurrence_weights
from dartformer.kernels.softmax import wide
from dartformer.kernels.target import here


@dataclass(frozen=True, repr=False)
class GatedLinear(KeepsState, Spelled):
    """Gated linear attention: S_i = diag(a_i) S_{i-1} + k_i v_i^T, y_i = S_i^T q_i / sqrt(D).

    The gates are a_i = sigmoid(W x_i)^(1/tau).

    Paper: Yang et al. 2024 (GLA), arXiv:2312.06635, sections 4.1 (recurrence), 4.3 (chunks) and 4.4
      (the gate).
    Own parameters: W = `up` `down` + `bias`, `down` `[H, E, rank]`, `up` `[H, rank, D]`, `bias`
      `[H, D]`.
    Cost: O(N (C + D) D) time in chunks of C = 32; state D x D. Memory O(N D), and for a gradient
      a state for each 128 tokens. No weight is divided by a sum. A TPU has a kernel of its own.
    Masks: an invalid token is not written and the state does not decay for it.
    Both ways: a second recurrence from the last token to the first, added; the own token is counted
      once.
    Deviations: the gate and the norm of the output are left out (`model.branch_norm` is a norm for
      each head), and `down` is of each head, where the paper's heads share it.

    Attributes:
      rank: of the gate's projection.
      normaliser: tau, above 0: the larger, the longer the memory at first.
    """

    spelling: ClassVar[str] = "gated_linear"

    rank: int = 16
    normaliser: float = 16.0

    traits: ClassVar[Traits] = Traits(
        summary="linear recurrence that forgets each channel as the token says",
        paper="Yang et al. 2024, arXiv:2312.06635",
        causal=True,
        reads=frozenset("qkvx"),
        decodes=True,
        dropout="values",
    )

    def __post_init__(self) -> None:
        positive(self, rank=self.rank)
        if not 0 < self.normaliser < float("inf"):
            raise InputError(
                f"gated_linear: normaliser must be above 0 and finite, got {self.normaliser!r}."
            )

    def init(self, key: Array, shape: Shape) -> Params:
        """Projections that keep the variance of x, and no bias: gates near (1/2)^(1/tau)."""
        down, up = jax.random.split(key)
        h, e, d, r = shape.heads, shape.model_dim, shape.head_dim, self.rank
        return {
            "down": jax.random.normal(down, (h, e, r)) * e**-0.5,
            "up": jax.random.normal(up, (h, r, d)) * r**-0.5,
            "bias": jnp.zeros((h, d)),
        }

    def _logits(self, params: Params, inputs: Inputs) -> Array:
        """W x, `[B, N, H, D]`, of which the gates are sigmoids."""
        assert inputs.x is not None
        dtype = wide(inputs.q, inputs.k, inputs.x)
        x = inputs.x.astype(dtype)
        down, up = params["down"].astype(dtype), params["up"].astype(dtype)
        bias = params["bias"].astype(dtype)
        if (inputs.target or here()).accelerated:
            # Heads stay side by side, as the scan takes them.
            inner = x @ down.swapaxes(0, 1).reshape(x.shape[-1], -1)
            logits = inner @ _diagonal(up) + bias.ravel()
            return logits.reshape(*x.shape[:2], *bias.shape)
        inner = jnp.einsum("bne,her->bnhr", x, down)
        return jnp.einsum("bnhr,hrd->bnhd", inner, up) + bias

    def _decay(self, params: Params, inputs: Inputs) -> Array:
        """The log-decays `[B, N, H, D]`."""
        # log a_i, not a_i: the scan multiplies many gates, and their product would underflow.
        return jax.nn.log_sigmoid(self._logits(params, inputs)) / self.normaliser

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
        out = gated_attention(
            inputs.q,
            inputs.k,
            drop_values(inputs, train, key),
            self._logits(params, inputs),
            normaliser=self.normaliser,
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
        out, state = gated_scan_from(
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
        """The scan, and the gate of each token."""
        heads = shape.batch * shape.heads
        tokens = heads * shape.length
        gate = self.rank * (shape.model_dim + shape.head_dim)
        flops, numbers = gated_scan_work(shape.length, shape.head_dim)
        return Cost(
            flops=flops * heads + tokens * (2 * gate + 6 * shape.head_dim),
            parameters=shape.heads * (gate + shape.head_dim),
            activation_bytes=(numbers * heads + 2 * tokens * shape.head_dim) * shape.wide_itemsize,
            # Decoding keeps the state D x D, and no keys and values.
            state_bytes=heads * shape.head_dim**2 * shape.wide_itemsize,
        )


def _diagonal(matrices: Array) -> Array:
    """One matrix `[H R, H D]` of a matrix `[H, R, D]` for each head, with zeros elsewhere.

    They are H times the work of a product for each head, which is little here. That comes with the
    heads in front, and accelerators would copy it to where they stand side by side.
    """
    heads, rank, width = matrices.shape
    blocks = jnp.einsum("hrd,hg->hrgd", matrices, jnp.eye(heads, dtype=matrices.dtype))
    return blocks.reshape(heads * rank, heads * width)
