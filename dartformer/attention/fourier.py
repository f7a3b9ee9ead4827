"""FNet: a Fourier transform in place of attention."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.attention.base import (
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
from dartformer.attention.slices import by_heads
from dartformer.errors import InputError
from dartformer.kernels.fourier import LONGEST, fourier
from dartformer.kernels.softmax import wide


@dataclass(frozen=True, repr=False)
class Fourier(Spelled):
    """Mixing without parameters: y = Re(F_n v F_D) / sqrt(n D).

    F is the matrix of the discrete Fourier transform.

    Paper: Lee-Thorp et al. 2022 (FNet), arXiv:2105.03824, equation 3.
    Own parameters: none.
    Cost: O(N D (log N + D)) time, O(N D) memory; about four times that with a mask.
    Masks: n is the number of valid tokens of an example and the transform is theirs alone, as if
      padding were cut out: adding padding changes nothing. A plain transform would change with
      every token that is added. Not causal.
    Deviations: over the D numbers of v in one head, where FNet transforms all E of the layer's
      input. Divided by sqrt(n D), which makes the transform unitary: outputs, its real part, have 1
      / sqrt(2) of the scale of the values. Computed in float32 or wider: there is no FFT of float16
      or bfloat16.
    """

    traits: ClassVar[Traits] = Traits(
        summary="Fourier transform over tokens and numbers, no parameters",
        paper="Lee-Thorp et al. 2022, arXiv:2105.03824",
        causal=False,
        reads=frozenset("v"),
        matrix=False,
        dropout="values",
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
        """See `Attention`; raises `InputError` for more than 65,535 tokens with a mask."""
        accept(self, inputs, causal=causal)
        length = inputs.v.shape[1]
        if inputs.valid is not None and length > LONGEST:
            raise InputError(
                f"{self!r} takes at most {LONGEST} tokens where some may be padding, got {length}."
            )
        dropped = dataclasses.replace(inputs, v=drop_values(inputs, train, key))

        def some(params: Params, inputs: Inputs, key: Array | None) -> Array:
            return _transformed(inputs)

        return by_heads(some, params, dropped, None, on_cpu=2**18)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> None:
        """None: it mixes the numbers of a token as well."""
        return None

    def reference(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The output by definition, in O(N^2), `[B, N, H, D]`."""
        keep, width = inputs.mask, inputs.v.shape[-1]
        rank = jnp.cumsum(keep, axis=1) - 1
        n = jnp.maximum(keep.sum(1), 1)[:, None, None]
        # Modulo n before the division, in integers: a large angle has few digits after the point.
        turns = rank[:, :, None] * rank[:, None, :] % n / n  # [B, N, N]
        pairs = keep[:, :, None] & keep[:, None, :]
        matrix = jnp.exp(-2j * np.pi * turns) * pairs
        out = jnp.einsum("bnk,bkhd->bnhd", matrix, _across(inputs.v)).real
        return out * (n[..., None] * width) ** -0.5

    def cost(self, shape: Shape) -> Cost:
        """5 N log2 N for the transform over tokens, two real products over numbers; no mask."""
        numbers = shape.batch * shape.length * shape.heads * shape.head_dim
        levels = np.log2(max(shape.length, 2))
        return Cost(
            flops=numbers * (4 * shape.head_dim + 5 * levels + 2),
            parameters=0,
            activation_bytes=4 * numbers * shape.wide_itemsize,
            state_bytes=0,  # the transform is of all tokens: there is no decoding
        )


def _transformed(inputs: Inputs) -> Array:
    """The output of all heads of `inputs` at once."""
    dtype = inputs.v.dtype
    v = inputs.v.astype(wide(inputs.v))
    length, width = v.shape[1], v.shape[3]
    if inputs.valid is None:
        out = fourier(_across(v)).real * (length * width) ** -0.5
        return out.astype(dtype)
    # Valid tokens to the front, in their order; `rank` is where each went.
    rank = jnp.cumsum(inputs.valid, axis=1) - 1
    order = jnp.argsort(~inputs.valid, axis=1, stable=True)
    counts = inputs.valid.sum(1)
    front = jnp.take_along_axis(zero_invalid(v, inputs.valid), order[:, :, None, None], axis=1)
    out = fourier(_across(front), counts).real
    # Back to their places. Before the first valid token the rank is -1: that row is zeroed below.
    out = jnp.take_along_axis(out, jnp.maximum(rank, 0)[:, :, None, None], axis=1)
    scale = (jnp.maximum(counts, 1) * width).astype(out.dtype) ** -0.5
    out = out * scale[:, None, None, None]
    return zero_invalid(out.astype(dtype), inputs.valid)


def _across(v: Array) -> Array:
    """v F_D over the last axis, complex.

    D is small, so two real products are quicker than an FFT.
    """
    width = v.shape[-1]
    index = np.arange(width)
    angle = 2 * np.pi * (np.outer(index, index) % width) / width
    real = jnp.asarray(np.cos(angle), v.dtype)
    imaginary = jnp.asarray(-np.sin(angle), v.dtype)
    return jax.lax.complex(v @ real, v @ imaginary)
