"""Splash attention in Pallas' interpreter, against the dense definition: outputs, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.kernels import splash
from dartformer.kernels.softmax import masked_softmax

B, N, H, D = 2, 140, 2, 8
VALID = np.random.default_rng(1).random((B, N)) < 0.6
VALID[1] = False


def definition(q, k, v, *, causal, window, prefix, valid):
    """The softmax under its mask, `[B, N, H, D]`; zero where not valid."""
    distance = jnp.arange(N) - jnp.arange(N)[:, None]
    allowed = jnp.ones((N, N), bool)
    if window is not None:
        allowed = (abs(distance) <= window) | (jnp.arange(N) < prefix)
    if causal:
        allowed = allowed & (distance <= 0)
    if valid is not None:
        allowed = allowed & valid[:, None, None]
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * D**-0.5
    weights = masked_softmax(scores, jnp.broadcast_to(allowed, scores.shape))
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    if valid is None:
        return out
    return jnp.where(valid[:, :, None, None], out, 0)


@pytest.mark.parametrize(
    ("causal", "window", "prefix", "masked"),
    [
        (False, None, 0, True),
        (True, None, 0, False),
        (False, 20, 0, True),
        (False, 5, 3, True),
        (True, 5, 3, False),
    ],
)
def test_splash_is_the_definition(monkeypatch, compile_quickly, causal, window, prefix, masked):
    """Over two blocks, the second partly filled: the output, the gradient, its derivative."""
    monkeypatch.setattr(splash, "BLOCK", 128)
    rng = np.random.default_rng(0)
    q, k, v, direction = (
        jnp.asarray(rng.standard_normal((B, N, H, D)), jnp.float32) for _ in range(4)
    )
    options = {"causal": causal, "window": window, "prefix": prefix, "valid": None}
    if masked:
        options["valid"] = jnp.asarray(VALID)

    def derivatives(function):
        def loss(q, k, v):
            return (function(q, k, v, **options) ** 2 * direction).sum()

        gradient = jax.grad(loss, (0, 1, 2))

        def measured(q, k, v):
            second = jax.jvp(gradient, (q, k, v), (k, v, q))[1]
            return function(q, k, v, **options), gradient(q, k, v), second

        return jax.jit(measured)(q, k, v)

    want = derivatives(definition)
    got = derivatives(lambda *a, **o: splash.splash_attention(*a, **o, interpret=True))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
    if masked:
        assert (got[0][1] == 0).all()
        assert all((g[1] == 0).all() for g in got[1])


def test_blocks_waste_little():
    assert splash.blocks_of(1) == (128, 128)
    assert splash.blocks_of(512) == (512, 512)
    assert splash.blocks_of(1025) == (384, 1152)
