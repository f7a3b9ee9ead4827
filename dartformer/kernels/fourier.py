"""The discrete Fourier transform of padded sequences, each over its own number of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.fft import next_fast_len

LONGEST = 65_535
"""The longest padded sequence: squares of positions must fit 32 bits without a sign."""


def fourier(z: Array, counts: Array | None = None) -> Array:
    """y_k = sum_m z_m exp(-2 pi i k m / n), over the first n tokens of each example.

    Where n differs from example to example it is a traced number, which no FFT takes. With
    Bluestein's identity (1970) k m = (k^2 + m^2 - (k - m)^2) / 2 the transform is a convolution
    with a chirp, of a static length: three FFTs of at least 2 N - 1 in place of one of N.

    Args:
      z: `[B, N, ...]`, complex; with `counts`, zero from token n on.
      counts: n, `[B]` integers; None if every n is N.

    Returns:
      `[B, N, ...]`, undefined from token n on. Time O(N log N) for each number of a token.

    Raises:
      ValueError: N is above `LONGEST`, with `counts`.
    """
    if counts is None:
        return jnp.fft.fft(z, axis=1)
    length = z.shape[1]
    if length > LONGEST:
        raise ValueError(
            f"the Fourier transform of padded sequences takes at most {LONGEST} tokens, "
            f"got {length}."
        )
    size = int(next_fast_len(2 * length - 1))
    n = jnp.maximum(counts, 1).astype(jnp.uint32)[:, None]
    squares = jnp.asarray(np.arange(length, dtype=np.uint32) ** 2)
    # Modulo the period, in integers: the cosine of pi N in float32 would have few digits left.
    dtype = z.real.dtype
    angle = np.pi * (squares % (2 * n)).astype(dtype) / n.astype(dtype)
    chirp = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))  # [B, N]
    # The chirp at k - m for all k and m: it is even, and negative lags stand at the end.
    gap = jnp.zeros((chirp.shape[0], size - 2 * length + 1), chirp.dtype)
    circular = jnp.concatenate([chirp, gap, chirp[:, :0:-1]], axis=1)  # [B, size]
    trailing = (1,) * (z.ndim - 2)
    turn = chirp.conj().reshape(*chirp.shape, *trailing)
    spectrum = jnp.fft.fft(circular).reshape(*circular.shape, *trailing)
    products = jnp.fft.fft(z * turn, size, axis=1) * spectrum
    convolved = jnp.fft.ifft(products, axis=1)[:, :length]
    return convolved * turn
