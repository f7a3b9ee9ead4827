"""The softmax contract, against numpy float64 and against jax.nn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.kernels.softmax import masked_softmax, softmax_attention


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def oracle(scores, allowed):
    """Row by row, over the allowed entries only."""
    out = np.zeros_like(scores)
    for index in np.ndindex(scores.shape[:-1]):
        keep = allowed[index]
        if keep.any():
            e = np.exp(scores[index][keep] - scores[index][keep].max())
            out[index][keep] = e / e.sum()
    return out


@pytest.mark.parametrize("scale", [1, 50, 1e4])
def test_masked_softmax_is_the_softmax_of_what_is_allowed(scale):
    scores = scale * normal(0, 2, 3, 7, 11)
    allowed = np.random.default_rng(1).random(scores.shape) < 0.5
    allowed[0, 0, 0] = False
    with jax.enable_x64(True):
        actual = masked_softmax(jnp.asarray(scores), jnp.asarray(allowed))
    np.testing.assert_allclose(actual, oracle(scores, allowed), atol=1e-14)
    np.testing.assert_allclose(
        masked_softmax(jnp.asarray(scores, jnp.float32), jnp.asarray(allowed)),
        oracle(np.float32(scores).astype(float), allowed),
        atol=1e-6,
    )
    assert (np.asarray(actual)[~allowed] == 0).all()


def test_a_row_with_nothing_allowed_is_zero_with_zero_gradient():
    scores = jnp.asarray(normal(0, 4, 9), jnp.float32) * 1e6
    allowed = jnp.zeros((4, 9), bool).at[0].set(True)
    value, pull = jax.vjp(lambda s: masked_softmax(s, allowed), scores)
    (gradient,) = pull(jnp.ones_like(value) * 1e6)
    assert (value[1:] == 0).all()
    assert (gradient[1:] == 0).all()
    assert jnp.isfinite(gradient).all()
    second = jax.jvp(
        jax.grad(lambda s: jnp.sum(masked_softmax(s, allowed) ** 2)), (scores,), (scores,)
    )[1]
    assert jnp.isfinite(second).all()
    assert (second[1:] == 0).all()


def test_softmax_is_float32_inside_for_bfloat16_and_stays_wide_for_float64():
    scores = jnp.asarray(normal(0, 3, 500), jnp.bfloat16)
    assert masked_softmax(scores, None).dtype == jnp.float32
    np.testing.assert_allclose(masked_softmax(scores, None).sum(-1), 1, atol=1e-6)
    with jax.enable_x64(True):
        assert masked_softmax(jnp.ones((2, 2), jnp.float64), None).dtype == jnp.float64


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_attention_agrees_with_jax_nn(causal, masked):
    q, k, v = (jnp.asarray(normal(s, 2, 19, 3, 8), jnp.float32) for s in range(3))
    valid = (
        jnp.arange(19) < jnp.array([[19], [11]]) if masked else None
    )  # the first key exists: no empty rows
    mask = None if valid is None else valid[:, None, None, :]

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation="xla"
        )

    def ours(q, k, v):
        return softmax_attention(q, k, v, causal=causal, valid=valid)

    np.testing.assert_allclose(ours(q, k, v), theirs(q, k, v), atol=1e-6)
    cotangent = jnp.asarray(normal(4, *v.shape), jnp.float32)
    for ours_, theirs_ in zip(
        *(jax.vjp(f, q, k, v)[1](cotangent) for f in (ours, theirs)), strict=True
    ):
        np.testing.assert_allclose(ours_, theirs_, atol=3e-6)


def test_garbage_at_masked_keys_changes_nothing():
    q, k, v = (jnp.asarray(normal(s, 1, 8, 2, 4), jnp.float32) for s in range(3))
    valid = jnp.arange(8)[None] < 5
    padding = ~valid[:, :, None, None]
    out = softmax_attention(q, k, v, valid=valid)
    np.testing.assert_array_equal(
        out,
        softmax_attention(q, jnp.where(padding, 1e9, k), jnp.where(padding, -1e20, v), valid=valid),
    )
