"""The two forms of linear attention against their quadratic definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention.conformance.case import quick
from dartformer.kernels.linear_scan import linear_attention, ratio


def quadratic(phi_q, phi_k, v, causal, valid):
    """Every product of features, then rows divided by their sum."""
    products = jnp.einsum("bnhm,bkhm->bhnk", phi_q, phi_k) * valid[:, None, None, :]
    products = jnp.tril(products) if causal else products
    total = products.sum(-1, keepdims=True)
    return jnp.einsum("bhnk,bkhd->bnhd", products / jnp.where(total == 0, 1, total), v)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("length", "chunk"), [(53, 16), (48, 16), (1, 16), (16, 16), (17, 16), (5, 1)]
)
def test_linear_attention_is_the_quadratic_form(length, chunk, causal):
    random = np.random.default_rng(length)
    with jax.enable_x64(True):
        phi_q, phi_k = (jnp.asarray(random.random((2, length, 3, 5))) for _ in range(2))
        v, c = (jnp.asarray(random.standard_normal((2, length, 3, 7))) for _ in range(2))
        valid = (
            jnp.asarray(random.random((2, length)) < 0.7).at[1, :3].set(False)
        )  # empty rows when causal

        def output_and_gradients(f):
            out, pull = jax.vjp(f, phi_q, phi_k, v)
            return out, *pull(c)

        ours = quick(
            lambda: output_and_gradients(
                lambda *a: linear_attention(*a, causal=causal, valid=valid, chunk=chunk)
            )
        )()
        theirs = quick(lambda: output_and_gradients(lambda *a: quadratic(*a, causal, valid)))()
        for actual, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_tiny_features_lose_nothing(causal):
    random = np.random.default_rng(0)
    q, k = (random.random((1, 40, 2, 4)) for _ in range(2))
    v = random.standard_normal((1, 40, 2, 4)).astype(np.float32)

    def run(size):
        f = quick(
            jax.value_and_grad(
                lambda q: jnp.sum(
                    linear_attention(
                        q, jnp.float32(k * size), jnp.asarray(v), causal=causal, chunk=16
                    )
                    ** 2
                )
            )
        )
        value, gradient = f(jnp.float32(q * size))
        return value, gradient * size

    for actual, expected in zip(run(1e-12), run(1.0), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_zero_denominator_gives_zero_with_finite_gradients():
    value, pull = jax.vjp(ratio, jnp.zeros((2, 3)), jnp.array([[0.0], [1e-30]]))
    assert (value == 0).all()
    assert all(jnp.isfinite(g).all() for g in pull(jnp.ones((2, 3)) * 1e-6))


def test_the_state_is_float32_for_bfloat16_inputs():
    v = jnp.ones((1, 600, 1, 1), jnp.bfloat16)
    for causal in (False, True):
        out = quick(lambda v, c=causal: linear_attention(v, v, v, causal=c))(v)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_array_equal(out, 1)  # a bfloat16 sum of ones stops at 256
