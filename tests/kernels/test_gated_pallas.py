"""The TPU's kernel of `gated_scan` in Pallas' interpreter, against the definition token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import parse
from dartformer.attention.base import Inputs, Shape
from dartformer.kernels import gated_pallas
from dartformer.kernels.gated_pallas import gated_recurrence, refusal
from dartformer.kernels.recurrence import recurrence
from dartformer.kernels.target import Target

B, N, M, D = 2, 40, 4, 6
SCALE, NORMALISER = 0.5, 3.0


def arrays(heads=1):
    """q, k, v, logits, and a cotangent; and which tokens are valid."""
    random = np.random.default_rng(0)
    q, k = (random.standard_normal((B, N, heads, M)) for _ in range(2))
    v, cotangent = (random.standard_normal((B, N, heads, D)) for _ in range(2))
    logits = random.standard_normal((B, N, heads, M))
    valid = random.random((B, N)) < 0.7
    valid[1, :20] = False
    return [jnp.asarray(x, jnp.float32) for x in (q, k, v, logits, cotangent)], jnp.asarray(valid)


def definition(q, k, v, logits, **options):
    """The recurrence of gates."""
    return recurrence(SCALE * q, k, v, jax.nn.log_sigmoid(logits) / NORMALISER, **options)


def kernel(*floats, **options):
    options = {"scale": SCALE, "normaliser": NORMALISER, **options}
    return gated_recurrence(*floats, interpret=True, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_is_the_definition(monkeypatch, compile_quickly, causal):
    """Over three chunks, the last partly filled: the output and the gradients of all arguments."""
    monkeypatch.setattr(gated_pallas, "CHUNK", 16)
    (*floats, cotangent), valid = arrays(2 - causal)

    def measured(function):
        out, pull = jax.vjp(lambda *x: function(*x, causal=causal, valid=valid), *floats)
        return out, *pull(cotangent)

    got, want = jax.jit(lambda: (measured(kernel), measured(definition)))()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


def test_further_derivatives_are_those_of_the_definition(monkeypatch, compile_quickly):
    monkeypatch.setattr(gated_pallas, "CHUNK", 32)
    (*floats, cotangent), valid = arrays()

    def second(function):
        def loss(*floats):
            return (function(*floats, causal=False, valid=valid) ** 2 * cotangent).sum()

        return jax.jvp(jax.grad(loss, (0, 1, 2, 3)), tuple(floats), tuple(floats))[1]

    got, want = jax.jit(lambda: (second(kernel), second(definition)))()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)


def test_strong_decays_in_bfloat16_stay_finite(monkeypatch, compile_quickly):
    """Where log-decays add up to hundreds no exponent is above zero; outputs have v's dtype."""
    monkeypatch.setattr(gated_pallas, "CHUNK", 32)
    (q, k, v, logits, _), _ = arrays()
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))

    def loss(*floats):
        out = kernel(*floats, causal=False)
        assert out.dtype == jnp.bfloat16
        return out.astype(jnp.float32).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(q, k, v, 500 * logits)
    assert jnp.isfinite(value)
    for gradient, x in zip(gradients, (q, k, v, logits), strict=True):
        assert gradient.dtype == x.dtype
        assert jnp.isfinite(gradient.astype(jnp.float32)).all()


def test_heads_that_overfill_the_fast_memory_are_refused():
    tpu = Target("tpu", "TPU v5 lite")
    assert refusal(jnp.float32, 12, 64, 64, tpu) == ""
    assert "9 of width 64" in refusal(jnp.float32, 9, 64, 64, tpu)


def test_gates_as_one_product_are_those_of_each_head(compile_quickly):
    """On accelerators; few tokens take no kernel there, and run here."""
    attention = parse("gated_linear(rank=3)")
    params = attention.init(jax.random.key(0), Shape(8, 2, M, 2 * M, B, 4))
    (q, k, v, _, cotangent), _ = arrays(2)
    x = jnp.concatenate([q, k], axis=-1).reshape(B, N, -1)[..., : 2 * M]

    def gradients(platform):
        def loss(params, x):
            inputs = Inputs(q, k, v, x, target=Target(platform, "any"))
            return (attention(params, inputs, causal=True) * cotangent).sum()

        return jax.grad(loss, (0, 1))(params, x)

    got, want = jax.jit(lambda: (gradients("tpu"), gradients("cpu")))()
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6), got, want)
