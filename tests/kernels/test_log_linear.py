"""Linear attention from the logarithms of its features, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention.conformance.case import quick
from dartformer.kernels.log_linear import log_linear_attention, log_linear_weights
from dartformer.kernels.softmax import dense_allowed


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("length", "chunk", "scale"), [(53, 16, 1.0), (32, 16, 30.0), (1, 16, 1.0), (21, 5, 3000.0)]
)
def test_it_is_the_quadratic_form_whatever_the_size_of_the_features(length, chunk, scale, causal):
    random = np.random.default_rng(length)
    q, k = (scale * random.standard_normal((2, length, 3, 5)) for _ in range(2))
    v, c = (random.standard_normal((2, length, 3, 7)) for _ in range(2))
    valid = random.random((2, length)) < 0.7
    valid[1, :3] = False  # empty rows when causal

    def dense(q, k, v):
        allowed = dense_allowed(length, causal=causal, valid=valid)
        return jnp.einsum("bhnk,bkhd->bnhd", log_linear_weights(q, k, allowed), v)

    def fast(q, k, v):
        return log_linear_attention(q, k, v, causal=causal, valid=valid, chunk=chunk)

    def output_and_gradients(f):
        out, pull = jax.vjp(f, q, k, v)
        return out, *pull(c)

    with jax.enable_x64(True):
        for actual, expected in zip(
            quick(lambda: output_and_gradients(fast))(),
            quick(lambda: output_and_gradients(dense))(),
            strict=True,
        ):
            np.testing.assert_allclose(actual, expected, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_no_query_loses_its_keys_in_float32(causal):
    log_k = np.float32([[0, -500, 900, -1000]]).reshape(1, 4, 1, 1)
    v = np.float32([1, 2, 3, 4]).reshape(1, 4, 1, 1)

    def loss(k):
        out = log_linear_attention(jnp.zeros_like(k), k, v, causal=causal)
        return jnp.sum(out), out

    gradient, out = quick(jax.grad(loss, has_aux=True))(log_k)
    np.testing.assert_array_equal(out[0, :, 0, 0], [1, 1, 3, 3] if causal else 3)
    assert np.isfinite(gradient).all()
