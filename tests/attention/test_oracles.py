"""Each attention against the equation of its paper, written in numpy float64 without our kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import Inputs, Shape, parse
from dartformer.attention.check_case import arrays

B, N, H, D = 3, 45, 2, 6


def softmax_rows(scores, seen):
    """Softmax over the entries of each row that are seen; a row that sees none is zero."""
    out = np.zeros_like(scores)
    for i, row in enumerate(seen):
        if row.any():
            e = np.exp(scores[i, row] - scores[i, row].max())
            out[i, row] = e / e.sum()
    return out


def full(q, k, v, seen, params):
    return softmax_rows(q @ k.T / np.sqrt(D), seen) @ v


def local(q, k, v, seen, params):
    i = np.arange(len(q))
    return softmax_rows(q @ k.T / np.sqrt(D), seen & (abs(i[:, None] - i) <= 4)) @ v


def linear(q, k, v, seen, params):
    phi_q, phi_k = (np.where(x > 0, x + 1, np.exp(x)) for x in (q, k))
    out = np.zeros_like(v)
    for i in range(len(q)):  # token by token, equation 9
        weights = np.array([phi_q[i] @ phi_k[j] if seen[i, j] else 0.0 for j in range(len(k))])
        if weights.any():
            out[i] = weights @ v / weights.sum()
    return out


def linformer(q, k, v, seen, params):
    exists = seen.any(axis=0)[:, None]
    e, f = params["E"][:, :len(q)], params["F"][:, :len(q)]
    scores = q @ (e @ (k * exists)).T / np.sqrt(D)
    return softmax_rows(scores, np.ones(scores.shape, bool)) @ (f @ (v * exists))


def uniform(q, k, v, seen, params):
    return np.stack([v[row].mean(axis=0) if row.any() else np.zeros(D) for row in seen])


def identity(q, k, v, seen, params):
    return v


SPECS = {"full": full, "local(window=4)": local, "linear": linear, "linformer(rank=7)": linformer, "uniform": uniform,
         "identity": identity}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_the_equation(spec, causal):
    attention = parse(spec)
    if causal and not attention.traits.causal:
        pytest.skip("not causal")
    random = np.random.default_rng(3)
    q, k, v = (random.standard_normal((B, N, H, D)) for _ in range(3))
    valid = random.random((B, N)) < 0.75
    valid[1, :6], valid[2] = False, False
    params = attention.init(jax.random.key(0), Shape(N + 3, H, D, H * D))
    inputs = [Inputs(*(jnp.asarray(a, dtype) for a in (q, k, v)), None, jnp.asarray(valid))
              for dtype in (jnp.float32,)]
    out = jax.jit(lambda p, i: attention(p, i, causal=causal))(params, inputs[0])
    with jax.enable_x64(True):
        exact = attention(params, Inputs(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), None, jnp.asarray(valid)),
                          causal=causal)
    for b, h in np.ndindex(B, H):
        seen = np.broadcast_to(valid[b], (N, N)) & (np.tri(N, dtype=bool) if causal else True)
        own = {name: np.asarray(p[h], np.float64) for name, p in params.items()}
        wanted = SPECS[spec](q[b, :, h], k[b, :, h], v[b, :, h], seen, own) * valid[b][:, None]
        np.testing.assert_allclose(exact[b, :, h], wanted, atol=1e-13)
        np.testing.assert_allclose(out[b, :, h], wanted, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_full_and_local_agree_with_jax_nn(causal):
    q, k, v = (jnp.asarray(np.random.default_rng(s).standard_normal((2, 70, 3, 8)), jnp.float32) for s in range(3))
    valid = jnp.arange(70)[None] < jnp.array([[70], [40]])
    i = jnp.arange(70)
    for attention, band in ((parse("full"), 70), (parse("local(window=9)"), 9)):
        mask = valid[:, None, None, :] & (abs(i[:, None] - i) <= band)
        wanted = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")
        out = attention({}, Inputs(q, k, v, None, valid), causal=causal)
        np.testing.assert_allclose(jnp.where(valid[..., None, None], wanted, 0), out, atol=1e-6)


@pytest.mark.parametrize("spec", ["local(window=16)", "linear", "linformer(rank=32)", "uniform", "identity"])
def test_no_array_of_n_by_n(spec):
    attention, n = parse(spec), 8192
    shape = Shape(n, 1, 8, 8)
    params = jax.eval_shape(lambda key: attention.init(key, shape), jax.random.key(0))
    qkv = jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32)
    valid = jax.ShapeDtypeStruct((1, n), bool)
    for causal in (False, True)[:1 + attention.traits.causal]:
        traced = jax.make_jaxpr(jax.grad(lambda v, q, p, valid, causal=causal: jnp.sum(
            attention(p, Inputs(q, q, v, None, valid), causal=causal))))(qkv, qkv, params, valid)
        assert max(arrays(traced)) <= n * 128  # n * n would be n * 8192


def test_linformer_heads_differ_and_scores_start_unsaturated():
    attention, shape = parse("linformer(rank=16)"), Shape(1024, 4, 32, 128)
    params = attention.init(jax.random.key(0), shape)
    assert jax.tree.map(jnp.shape, params) == {"E": (4, 16, 1024), "F": (4, 16, 1024)}
    assert len(np.unique(np.asarray(params["E"])[:, 0, 0])) == 4
    assert not np.allclose(params["E"], params["F"])
    k = jax.random.normal(jax.random.key(1), (1, 1024, 4, 32))
    slots = jnp.einsum("hmn,bnhd->bhmd", params["E"], k)
    np.testing.assert_allclose(slots.std(), 1, atol=0.1)  # the scale of a key


def test_costs_grow_as_they_should():
    def cost(spec, n):
        return parse(spec).cost(Shape(n, 4, 32, 128))

    for spec, power in (("full", 2), ("local(window=64)", 1), ("linear", 1), ("linformer", 1), ("uniform", 1)):
        assert cost(spec, 8192).flops / cost(spec, 4096).flops == pytest.approx(2**power, rel=0.01)
    assert cost("full", 4096).flops > 8 * cost("local(window=64)", 4096).flops
    assert cost("full", 4096).state_bytes == 2 * 4096 * 128 * 4
    assert cost("local(window=64)", 4096).state_bytes == 2 * 65 * 128 * 4
    assert cost("linear", 4096).state_bytes == cost("linear", 64).state_bytes
    assert cost("linformer(rank=8)", 100).parameters == 2 * 4 * 8 * 100
