"""Depthwise convolution along the sequence: mixing by distance alone, a baseline."""

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
from dartformer.attention.decoding import KeepsState, for_heads, in_order, in_place
from dartformer.kernels.softmax import wide


@dataclass(frozen=True, repr=False)
class Conv(KeepsState, Spelled):
    """Depthwise convolution: y_i = sum_t kernel_t * v_{i - before + t}, t = 0 .. width - 1.

    Each of the D numbers has its own taps. before = floor(width / 2): an even width has one more
    tap before than after. Causal: before = width - 1.

    Paper: none; a baseline, the token mixing of lightweight convolutions (Wu et al. 2019,
      arXiv:1901.10430, section 3) without their sharing of channels and softmax. It lets a search
      find that a head needs no attention.
    Own parameters: kernel `[H, width, D]`.
    Cost: O(N width D) time, O(N D) memory.
    Masks: invalid tokens are zero before the convolution, as is what lies beyond both ends.
    Deviations: none.

    Attributes:
      width: taps.
    """

    width: int = 5

    traits: ClassVar[Traits] = Traits(
        summary="depthwise convolution, mixing by distance alone (baseline)",
        paper="none",
        causal=True,
        reads=frozenset("v"),
        matrix=False,
        decodes=True,
        dropout="values",
    )

    def __post_init__(self) -> None:
        positive(self, width=self.width)

    def init(self, key: Array, shape: Shape) -> Params:
        """kernel `[H, width, D]`, of variance 1 / width."""
        size = (shape.heads, self.width, shape.head_dim)
        return {"kernel": jax.random.normal(key, size) * self.width**-0.5}

    def _before(self, causal: bool) -> int:
        """Taps before the token itself."""
        if causal:
            return self.width - 1
        return self.width // 2

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
        # Padding inside the reach of a tap adds nothing, as what lies beyond both ends.
        v = zero_invalid(drop_values(inputs, train, key), inputs.mask)
        kernel = params["kernel"]
        kernel = kernel.astype(wide(v, kernel))
        length = v.shape[1]
        before = self._before(causal)
        after = self.width - 1 - before
        padded = jnp.pad(v, ((0, 0), (before, after), (0, 0), (0, 0)))
        # Shifted views, which fuse. XLA's depthwise convolution is far slower on a CPU, and its
        # gradient more so.
        out = padded[:, :length] * kernel[:, 0]  # [B, N, H, D] times [H, D]
        for t in range(1, self.width):
            out = out + padded[:, t : t + length] * kernel[:, t]
        return zero_invalid(out.astype(v.dtype), inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> None:
        """None: each of the D numbers has taps of its own."""
        return None

    def reference(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The output by definition, in O(N^2), `[B, N, H, D]`."""
        i = jnp.arange(inputs.v.shape[1])
        tap = i - i[:, None] + self._before(causal)  # [query, key]
        inside = (tap >= 0) & (tap < self.width)
        taps = params["kernel"][:, tap.clip(0, self.width - 1)]  # [H, query, key, D]
        taps = taps * inside[..., None]
        out = jnp.einsum("hqkd,bkhd->bqhd", taps, zero_invalid(inputs.v, inputs.mask))
        return zero_invalid(out, inputs.mask)

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The last values, `[B, width - 1, heads of them, D]`."""
        size = (shape.batch, self.width - 1, shape.kept_heads, shape.head_dim)
        return {"v": jnp.zeros(size, dtype)}

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        tokens = in_order(inputs)
        v = zero_invalid(tokens.inputs.v, tokens.new.exists)
        reach = jnp.concatenate([cache["v"], v.astype(cache["v"].dtype)], axis=1)
        kernel = params["kernel"]
        kernel = kernel.astype(wide(v, kernel))
        length = v.shape[1]
        out = jnp.zeros((), kernel.dtype)
        for t in range(self.width):
            out = out + for_heads(reach[:, t : t + length], inputs) * kernel[:, t]
        # Those before the next token: padding, which stands last, is not among them.
        count = tokens.new.stop - tokens.new.start
        index = count[:, None] + jnp.arange(self.width - 1)
        last = jnp.take_along_axis(reach, index[:, :, None, None], axis=1)
        return in_place(out, tokens, inputs), {"v": last}

    def cost(self, shape: Shape) -> Cost:
        """A multiply-add for each tap of each number; decoding keeps the tokens in reach."""
        numbers = shape.batch * shape.length * shape.heads * shape.head_dim
        kept = shape.batch * (self.width - 1) * shape.kept_heads * shape.head_dim
        return Cost(
            flops=2 * self.width * numbers,
            parameters=shape.heads * self.width * shape.head_dim,
            # The padded values, and the sums.
            activation_bytes=2 * numbers * shape.wide_itemsize,
            state_bytes=kept * shape.itemsize,
        )
