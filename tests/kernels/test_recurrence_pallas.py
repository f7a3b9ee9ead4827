"""The TPU's kernel of `decay_scan` in Pallas' interpreter, against the definition token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.kernels import recurrence_pallas
from dartformer.kernels.chunk_passes import group_of_heads, refusal
from dartformer.kernels.recurrence import recurrence
from dartformer.kernels.recurrence_pallas import decay_recurrence
from dartformer.kernels.target import Target

B, N, H, M, D = 2, 40, 2, 4, 6
SCALE = 0.5


def arrays():
    """q, k, v, log-decays, factors of k, and a cotangent; and which tokens are valid."""
    random = np.random.default_rng(0)
    q, k = (random.standard_normal((B, N, H, M)) for _ in range(2))
    v, cotangent = (random.standard_normal((B, N, H, D)) for _ in range(2))
    decay = -0.2 * random.exponential(size=(B, N, H))
    write = random.random((B, N, H))
    valid = random.random((B, N)) < 0.7
    valid[1, :20] = False
    floats = [jnp.asarray(x, jnp.float32) for x in (q, k, v, decay, write, cotangent)]
    return floats, jnp.asarray(valid)


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_is_the_definition(monkeypatch, compile_quickly, causal):
    """Over three chunks, the last partly filled: the output and the gradients of all arguments."""
    monkeypatch.setattr(recurrence_pallas, "CHUNK", 16)
    (*floats, cotangent), valid = arrays()

    def definition(q, k, v, decay, write):
        return recurrence(SCALE * q, k * write[..., None], v, decay, causal=causal, valid=valid)

    def kernel(q, k, v, decay, write):
        return decay_recurrence(
            q, k, v, decay, causal=causal, valid=valid, scale=SCALE, write=write, interpret=True
        )

    def measured(function):
        out, pull = jax.vjp(function, *floats)
        return out, *pull(cotangent)

    got, want = jax.jit(lambda: (measured(kernel), measured(definition)))()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


def test_further_derivatives_are_those_of_the_definition(monkeypatch, compile_quickly):
    monkeypatch.setattr(recurrence_pallas, "CHUNK", 32)
    (*floats, cotangent), valid = arrays()

    def second(function):
        def loss(*floats):
            return (function(*floats) ** 2 * cotangent).sum()

        return jax.jvp(jax.grad(loss, (0, 1, 2, 3)), tuple(floats[:4]), tuple(floats[:4]))[1]

    def definition(q, k, v, decay):
        return recurrence(q, k, v, decay, causal=False, valid=valid)

    def kernel(q, k, v, decay):
        return decay_recurrence(q, k, v, decay, causal=False, valid=valid, interpret=True)

    got, want = jax.jit(lambda: (second(kernel), second(definition)))()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)


def test_strong_decays_in_bfloat16_stay_finite(monkeypatch, compile_quickly):
    """Where log-decays add up to hundreds no exponent is above zero; outputs have v's dtype."""
    monkeypatch.setattr(recurrence_pallas, "CHUNK", 32)
    (q, k, v, decay, _, _), _ = arrays()
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))

    def loss(*floats):
        out = decay_recurrence(*floats, causal=False, interpret=True)
        assert out.dtype == jnp.bfloat16
        return out.astype(jnp.float32).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(q, k, v, 500 * decay)
    assert jnp.isfinite(value)
    for gradient, x in zip(gradients, (q, k, v, decay), strict=True):
        assert gradient.dtype == x.dtype
        assert jnp.isfinite(gradient.astype(jnp.float32)).all()


def test_heads_of_a_program_fill_registers():
    assert group_of_heads(8, 64, 64) == 8
    assert group_of_heads(16, 64, 64) == 8
    assert group_of_heads(8, 256, 256) == 2
    assert group_of_heads(32, 8, 8) == 16
    assert group_of_heads(3, 12, 20) == 3


def test_refusals_name_the_reason():
    tpu = Target("tpu", "TPU v5 lite")
    assert refusal(jnp.bfloat16, 8, 64, 64, tpu) == ""
    assert "float16" in refusal(jnp.float16, 8, 64, 64, tpu)
    assert "NVIDIA" in refusal(jnp.bfloat16, 8, 64, 64, Target("gpu", "NVIDIA H100"))
    assert "512" in refusal(jnp.bfloat16, 8, 512, 512, tpu)
    for heads, width in ((24, 12), (9, 248)):
        assert f"{heads} of width {width}" in refusal(jnp.bfloat16, heads, width, width, tpu)
