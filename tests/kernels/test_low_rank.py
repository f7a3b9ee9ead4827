"""Slots: projection, and softmax over them."""

import jax
import jax.numpy as jnp
import numpy as np

from dartformer.kernels.low_rank import low_rank_attention, project


def test_low_rank_attention_head_by_head():
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, 11, 3, 4)) for _ in range(3))
    e, f = (random.standard_normal((3, 5, 11)) for _ in range(2))
    allowed = np.array([True, True, False, True, False])
    with jax.enable_x64(True):
        out = low_rank_attention(
            jnp.asarray(q),
            project(jnp.asarray(e), k),
            project(jnp.asarray(f), v),
            jnp.asarray(allowed),
        )
    for b, h in np.ndindex(2, 3):
        scores = np.exp(q[b, :, h] @ (e[h] @ k[b, :, h]).T / 2) * allowed
        expected = scores / scores.sum(-1, keepdims=True) @ (f[h] @ v[b, :, h])
        np.testing.assert_allclose(out[b, :, h], expected, atol=1e-12)


def test_no_slot_allowed_is_zero():
    q, slots = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 2, 5, 4))
    grads = jax.grad(
        lambda q, s: low_rank_attention(q, s, s, jnp.zeros(5, bool)).sum(), argnums=(0, 1)
    )(q, slots)
    assert (low_rank_attention(q, slots, slots, jnp.zeros(5, bool)) == 0).all()
    assert all((g == 0).all() for g in grads)
