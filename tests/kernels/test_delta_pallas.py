"""The TPU's kernel of `delta_scan` in Pallas' interpreter, against the definition token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.kernels import delta_pallas
from dartformer.kernels.delta_pallas import delta_recurrence
from dartformer.kernels.delta_scan import unit_vector
from dartformer.kernels.recurrence import recurrence

B, N, M, D = 2, 40, 4, 6


def arrays(heads=1):
    """q, k, v, log-decays, shares, and a cotangent; and which tokens are valid."""
    random = np.random.default_rng(0)
    q, k = (random.standard_normal((B, N, heads, M)) for _ in range(2))
    v, cotangent = (random.standard_normal((B, N, heads, D)) for _ in range(2))
    decay = -0.2 * random.exponential(size=(B, N, heads))
    beta = random.random((B, N, heads))
    valid = random.random((B, N)) < 0.7
    valid[1, :20] = False
    floats = [jnp.asarray(x, jnp.float32) for x in (q, k, v, decay, beta, cotangent)]
    return floats, jnp.asarray(valid)


def definition(q, k, v, decay, beta, **options):
    """The recurrence of unit vectors."""
    return recurrence(unit_vector(q) * M**-0.5, unit_vector(k), v, decay, beta=beta, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_is_the_definition(monkeypatch, compile_quickly, causal):
    """Over three chunks, the last partly filled: the output and the gradients of all arguments."""
    monkeypatch.setattr(delta_pallas, "CHUNK", 16)
    (*floats, cotangent), valid = arrays(2 - causal)

    def measured(function, **options):
        def call(*floats):
            return function(*floats, causal=causal, valid=valid, **options)

        out, pull = jax.vjp(call, *floats)
        return call(*floats), out, *pull(cotangent)

    got, want = jax.jit(
        lambda: (measured(delta_recurrence, interpret=True), measured(definition))
    )()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


def test_further_derivatives_are_those_of_the_definition(monkeypatch, compile_quickly):
    monkeypatch.setattr(delta_pallas, "CHUNK", 64)
    (*floats, cotangent), valid = arrays()

    def second(function, **options):
        def loss(*floats):
            return (function(*floats, causal=True, valid=valid, **options) ** 2 * cotangent).sum()

        return jax.jvp(jax.grad(loss, (0, 1, 2, 3, 4)), tuple(floats), tuple(floats))[1]

    got, want = jax.jit(lambda: (second(delta_recurrence, interpret=True), second(definition)))()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)


def test_strong_decays_in_bfloat16_stay_finite(monkeypatch, compile_quickly):
    """Where log-decays add up to hundreds no exponent is above zero; outputs have v's dtype."""
    monkeypatch.setattr(delta_pallas, "CHUNK", 64)
    (q, k, v, decay, beta, _), _ = arrays()
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))

    def loss(*floats):
        out = delta_recurrence(*floats, causal=False, interpret=True)
        assert out.dtype == jnp.bfloat16
        return out.astype(jnp.float32).sum()

    floats = (q, k, v, 500 * decay, beta)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4)))(*floats)
    assert jnp.isfinite(value)
    for gradient, x in zip(gradients, floats, strict=True):
        assert gradient.dtype == x.dtype
        assert jnp.isfinite(gradient.astype(jnp.float32)).all()
