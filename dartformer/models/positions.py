"""Position encodings: sinusoids added to the embeddings, rotary queries and keys, ALiBi slopes."""

import jax.numpy as jnp
import numpy as np
from jax import Array

BASE = 10_000
"""Wavelengths reach from 2 pi to this times 2 pi, in sinusoids and rotations alike."""


def sinusoids(length: int, width: int) -> np.ndarray:
    """Sinusoidal positions `[N, E]`: sines first, then cosines.

    Vaswani et al. 2017, section 3.5, which interleaves the two."""
    half = (width + 1) // 2
    exponents = np.arange(half)[None] / max(half - 1, 1)
    angle = np.arange(length)[:, None] / BASE**exponents
    table = np.concatenate([np.sin(angle), np.cos(angle)], 1)
    return table[:, :width].astype(np.float32)


def rotate(x: Array, theta: float = BASE) -> Array:
    """x `[B, N, H, D]` with the pair (i, i + D/2) of token n turned by n / theta^(2 i / D).

    The dot product of a turned query and a turned key depends on their distance alone, and on no
    position (Su et al. 2021, arXiv:2104.09864, equation 34; halves for pairs, as in GPT-NeoX). In
    float32 or wider."""
    angle = angles(x.shape[1], x.shape[-1], theta)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    cos = jnp.asarray(np.cos(angle), dtype)  # [N, D/2]
    sin = jnp.asarray(np.sin(angle), dtype)
    return turned(x, cos[:, None], sin[:, None])


def angles(length: int, width: int, theta: float) -> np.ndarray:
    """By which `rotate` turns the pairs of each token, `[N, D / 2]`."""
    half = width // 2
    return np.arange(length)[:, None] / theta ** (np.arange(half) / half)


def turned(x: Array, cos: Array, sin: Array) -> Array:
    """x `[B, N, H, D]` with its pairs turned by angles whose cosines and sines are given.

    These are `[N, 1, D / 2]`, or `[B, N, 1, D / 2]`, in float32 or wider.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half].astype(cos.dtype), x[..., half:].astype(cos.dtype)
    pairs = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return pairs.astype(x.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """`[H]`: 2^(-8 (h + 1) / H).

    If H is not a power of two, they are those of the next smaller one, followed by every second of
    its double. Press et al. 2022, arXiv:2108.12409, section 3 and the authors' code.
    """
    power = 2 ** int(np.log2(heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between[: heads - power]])
