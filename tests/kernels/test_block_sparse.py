"""Block-sparse and band attention against a dense mask made from the same predicate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.accelerators.devices import device_of
from dartformer.attention.conformance.case import arrays
from dartformer.kernels import block_sparse
from dartformer.kernels.block_sparse import (
    band_attention,
    band_layout,
    block_sparse_attention,
    unique_ids,
)
from dartformer.kernels.softmax import masked_softmax
from dartformer.kernels.target import here


def dense(q, k, v, allowed, slopes=None):
    """Softmax over `allowed` [B or 1, H or 1, N, N], in O(N^2); with ALiBi if there are slopes."""
    scores = jnp.einsum("bnhd,bkhd->bhnk", q, k) / np.sqrt(q.shape[-1])
    if slopes is not None:
        i = np.arange(q.shape[1])
        scores = scores - slopes[:, None, None] * abs(i[:, None] - i)
    return jnp.einsum("bhnk,bkhd->bnhd", masked_softmax(scores, jnp.asarray(allowed)), v)


def agree(ours, theirs, seed, batch, length, heads, width=8):
    """Outputs and the gradients of q, k and v, in float64."""
    random = np.random.default_rng(seed)
    q, k, v, c = (
        jnp.asarray(random.standard_normal((batch, length, heads, width))) for _ in range(4)
    )

    def output_and_gradients(f):
        out, pull = jax.vjp(f, q, k, v)
        return out, *pull(c)

    for actual, expected in zip(
        jax.jit(lambda: output_and_gradients(ours))(),
        jax.jit(lambda: output_and_gradients(theirs))(),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("traced", [False, True])
def test_block_sparse_is_the_dense_mask(seed, traced):
    random = np.random.default_rng(seed)
    length, block, slots = (
        int(random.integers(1, 60)),
        int(random.integers(1, 12)),
        int(random.integers(1, 5)),
    )
    heads, batch = 3, 2
    blocks = -(-length // block)
    ids = random.integers(
        -1, blocks, (1 if seed % 2 else heads, blocks, slots)
    )  # repeats and empty slots on purpose
    valid = random.random((batch, length)) < 0.8
    causal = seed % 3 == 0

    def rule(i, j):
        return (j <= i) if causal else (i + j) % 3 != 1

    position = np.arange(length)
    allowed = np.zeros((len(ids), length, length), bool)
    for h, row, m in np.ndindex(ids.shape):
        if ids[h, row, m] >= 0:
            allowed[h] |= (position[:, None] // block == row) & (
                position // block == ids[h, row, m]
            )
    allowed = allowed[None] & rule(position[:, None], position) & valid[:, None, None, :]
    slopes = random.random(heads) if seed % 2 else None
    with jax.enable_x64(True):
        named = jnp.asarray(ids) if traced else ids
        agree(
            lambda q, k, v: block_sparse_attention(
                q, k, v, named, block=block, allowed=rule, valid=jnp.asarray(valid), slopes=slopes
            ),
            lambda q, k, v: dense(q, k, v, allowed, slopes),
            seed,
            batch,
            length,
            heads,
        )


@pytest.mark.parametrize(
    ("length", "window"),
    [
        (1, 0),
        (1, 5),
        (7, 0),
        (53, 0),
        (53, 3),
        (64, 31),
        (65, 32),
        (101, 33),
        (130, 64),
        (40, 39),
        (40, 40),
        (40, 1000),
        (33, 32),
        (300, 40),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_band_is_the_dense_band(length, window, causal):
    random = np.random.default_rng(length + window)
    valid = random.random((2, length)) < 0.7
    offset = np.arange(length) - np.arange(length)[:, None]
    band = (abs(offset) <= window) & ((offset <= 0) | (not causal))
    with jax.enable_x64(True):
        for mask in (None, jnp.asarray(valid)):
            allowed = band[None, None] if mask is None else band & valid[:, None, None, :]
            slopes = None if mask is None else np.array([0.5, 0.1])
            agree(
                lambda q, k, v, mask=mask, slopes=slopes: band_attention(
                    q, k, v, window=window, causal=causal, valid=mask, slopes=slopes
                ),
                lambda q, k, v, allowed=allowed, slopes=slopes: dense(q, k, v, allowed, slopes),
                length,
                2,
                length,
                2,
            )


def test_band_agrees_with_jax_nn_local_window():
    q, k, v = (
        jnp.asarray(np.random.default_rng(s).standard_normal((2, 90, 2, 8)), jnp.float32)
        for s in range(3)
    )
    for causal in (False, True):
        expected = jax.nn.dot_product_attention(
            q, k, v, local_window_size=(7, 0 if causal else 7), implementation="xla"
        )
        np.testing.assert_allclose(
            band_attention(q, k, v, window=7, causal=causal), expected, atol=1e-6
        )


def test_band_needs_no_more_keys_than_half_again():
    for window in (32, 64, 200):
        tiles, block, span = band_layout(4096, window)
        assert tiles * block >= 4096
        assert span <= 1.6 * (2 * window + 1)


@pytest.mark.parametrize("causal", [False, True])
def test_band_makes_no_array_of_n_by_n(causal):
    shape = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)
    traced = jax.make_jaxpr(
        jax.grad(lambda q: jnp.sum(band_attention(q, q, q, window=16, causal=causal)))
    )(shape)
    assert max(arrays(traced)) <= 4096 * 96


def test_ids_are_a_set_and_must_exist():
    np.testing.assert_array_equal(
        unique_ids(np.array([[2, 2, -1, 0, 2, 9]]), 3), [[2, -1, -1, 0, -1, -1]]
    )
    np.testing.assert_array_equal(
        unique_ids(jnp.array([[2, 2, -1, 0, 2, 9]]), 3), [[2, -1, -1, 0, -1, -1]]
    )
    q = jnp.ones((1, 10, 2, 4))
    with pytest.raises(ValueError, match=r"block ids must lie in \[-1, 3\), got 0 to 3"):
        block_sparse_attention(q, q, q, np.full((1, 3, 2), [0, 3]), block=4)
    with pytest.raises(ValueError, match=r"ids must be \[1 or 2, 3, M\] .* got \[1, 2, 2\]"):
        block_sparse_attention(q, q, q, np.zeros((1, 2, 2), int), block=4)


@pytest.mark.parametrize("seed", range(6))
def test_blocks_that_all_see_and_that_see_all(seed):
    random = np.random.default_rng(seed)
    length, block, slots = (
        int(random.integers(1, 50)),
        int(random.integers(1, 9)),
        int(random.integers(1, 4)),
    )
    heads, batch = 2, 3
    blocks = -(-length // block)
    ids = random.integers(
        -1, blocks, (batch if seed % 2 else 1, heads if seed % 3 else 1, blocks, slots)
    )
    everywhere = random.integers(
        -1, blocks, (batch if seed % 2 else 1, 3)
    )  # repeats and empty slots on purpose
    valid = random.random((batch, length)) < 0.8
    causal, both_ways = seed == 4, seed != 3
    number = np.arange(length) // block
    allowed = np.zeros((len(ids), ids.shape[1], length, length), bool)
    for b, h, row, m in np.ndindex(ids.shape):
        allowed[b, h] |= (number[:, None] == row) & (number == ids[b, h, row, m])
    through = (number == everywhere[..., None]).any(axis=1)[:, None]  # [B or 1, 1, N]
    allowed = allowed | through[:, :, None] | (through[..., None] if both_ways else False)
    allowed = allowed & valid[:, None, None, :] & (np.tri(length, dtype=bool) if causal else True)
    with jax.enable_x64(True):
        sets = [jnp.asarray(a) if seed % 2 else a for a in (ids, everywhere)]
        agree(
            lambda q, k, v: block_sparse_attention(
                q,
                k,
                v,
                sets[0],
                block=block,
                everywhere=sets[1],
                both_ways=both_ways,
                allowed=(lambda i, j: j <= i) if causal else None,
                valid=jnp.asarray(valid),
            ),
            lambda q, k, v: dense(q, k, v, allowed),
            seed,
            batch,
            length,
            heads,
        )


@pytest.mark.parametrize(
    ("length", "window", "prefix"), [(1, 0, 3), (7, 0, 1), (53, 3, 4), (101, 33, 40), (70, 8, 99)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_band_with_a_prefix_counts_each_key_once(length, window, prefix, causal):
    random = np.random.default_rng(length)
    valid = random.random((2, length)) < 0.7
    key = np.arange(length)
    band = ((abs(key - key[:, None]) <= window) | (key < prefix)) & (
        (key <= key[:, None]) | (not causal)
    )
    with jax.enable_x64(True):
        for mask in (None, jnp.asarray(valid)):
            allowed = band[None, None] if mask is None else band & valid[:, None, None, :]
            agree(
                lambda q, k, v, mask=mask: band_attention(
                    q, k, v, window=window, prefix=prefix, causal=causal, valid=mask
                ),
                lambda q, k, v, allowed=allowed: dense(q, k, v, allowed),
                length,
                2,
                length,
                2,
            )


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 1, 3), (1, 3, 5, 2), (2, 3, 5, 2)])
def test_blocks_by_a_product_are_those_taken(shape):
    """Bit for bit in every dtype; indices of one or all examples and heads, for all tiles or each."""
    rng = np.random.default_rng(0)
    index = rng.integers(0, 5, shape)
    x = jnp.asarray(rng.standard_normal((2, 3, 5, 2, 4)))  # [B, H, T, b, D]
    for dtype in (jnp.float32, jnp.bfloat16):
        blocks = x.astype(dtype)
        want = block_sparse._take(blocks, jnp.asarray(index))
        got = block_sparse._product(blocks, jnp.asarray(index))
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(
            got.astype(jnp.float32), jnp.broadcast_to(want, got.shape).astype(jnp.float32)
        )


def test_a_tpu_takes_blocks_of_narrow_heads_by_a_product():
    taking = block_sparse._taking
    tpu, gpu = (device_of(name).target for name in ("tpu-v5e", "h100"))
    assert taking(8, tpu) is block_sparse._product
    assert taking(64, tpu) is block_sparse._take
    assert taking(8, gpu) is block_sparse._take
    assert taking(8, here()) is block_sparse._take
