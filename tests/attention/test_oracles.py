"""Each attention against the fixtures of implementations that are not ours (tests/oracles)."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dartformer.attention
from dartformer.attention import Inputs, Shape, parse
from dartformer.attention.conformance.case import arrays, quick
from dartformer.attention.linear import elu_feature

FIXTURES = {
    path.stem: path
    for path in sorted((Path(__file__).parents[1] / "oracles" / "fixtures").glob("*.npz"))
}


@functools.cache
def fixture(name):
    with np.load(FIXTURES[name], allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def relative(actual, expected):
    """Largest difference, relative to the largest number wanted where that is above 1."""
    assert actual.shape == expected.shape
    return np.abs(np.asarray(actual, np.float64) - expected).max() / max(
        1.0, np.abs(expected).max()
    )


@pytest.mark.parametrize("name", FIXTURES)
def test_the_fixture(name, monkeypatch):
    """Outputs, and gradients of q, k, v, x and the parameters, in float32."""
    f = fixture(name)
    attention, causal = parse(str(f["spec"])), bool(f["causal"])
    parts = {key: f[key] for key in f if key in ("q", "k", "v", "x") or key.startswith("param/")}
    for key in f:
        if key.startswith("given/"):  # what ours would draw
            place, value = key.removeprefix("given/"), jnp.asarray(f[key])
            owner = (
                type(attention)
                if hasattr(attention, place)
                else sys.modules[type(attention).__module__]
            )
            monkeypatch.setattr(owner, place, lambda *_, value=value, **__: value)

    def outputs(parts):
        params = {
            key.removeprefix("param/"): part
            for key, part in parts.items()
            if key.startswith("param/")
        }
        keys = jax.random.split(jax.random.key(0), f["q"].shape[2])
        inputs = Inputs(*(parts[n] for n in "qkvx"), f["valid"], keys, f.get("slopes"))
        out = attention(params, inputs, causal=causal)
        return jnp.sum(out * f["cotangent"]), out

    grads, out = quick(jax.grad(outputs, has_aux=True))(parts)
    assert out.dtype == jnp.float32
    errors = {"output": relative(out, f["output"])}
    errors |= {
        f"grad/{key}": relative(grads[key], f[f"grad/{key}"]) for key in parts if f"grad/{key}" in f
    }
    limits = {
        key: 3e-5 if "param" in key else 1e-5 for key in errors
    }  # a parameter's sums over all tokens
    assert all(errors[key] <= limits[key] for key in errors), errors


def test_no_type_without_a_fixture():
    built_in = set(dartformer.attention.BUILT_IN)
    actual = {str(fixture(name)["spec"]).split("(")[0] for name in FIXTURES}
    assert built_in - actual == set()
    modes = {(type(parse(str(f["spec"]))), bool(f["causal"])) for f in map(fixture, FIXTURES)}
    for name in built_in:
        cls = dartformer.attention.ATTENTIONS[name]
        assert not cls.traits.causal or (cls, True) in modes, f"{name} has no causal fixture"
        assert not cls.traits.bidirectional or (cls, False) in modes, (
            f"{name} has no bidirectional fixture"
        )


def test_fixtures_say_who_made_them_and_are_small():
    for name, path in FIXTURES.items():
        f = fixture(name)
        assert str(f["oracle"]), name
        assert "numpy 2" in str(f["versions"]), name
        assert np.abs(f["output"]).max() > 0.1, name
        assert path.stat().st_size < 40_000, name
        # what the attention says that it reads, the oracle depends on, and nothing else
        reads = {key for key in "qkvx" if np.abs(f[f"grad/{key}"]).max() > 1e-6}
        assert reads == set(parse(str(f["spec"])).traits.reads), name


def test_linear_has_the_slope_of_elu_at_zero():
    assert jax.grad(elu_feature)(0.0) == 1.0


@pytest.mark.parametrize("causal", [False, True])
def test_full_and_local_agree_with_jax_nn(causal):
    q, k, v = (
        jnp.asarray(np.random.default_rng(s).standard_normal((2, 70, 3, 8)), jnp.float32)
        for s in range(3)
    )
    valid = jnp.arange(70)[None] < jnp.array([[70], [40]])
    i = jnp.arange(70)
    for attention, band in ((parse("full"), 70), (parse("local(window=9)"), 9)):
        mask = valid[:, None, None, :] & (abs(i[:, None] - i) <= band)
        expected = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation="xla"
        )
        out = quick(lambda inputs, a=attention: a({}, inputs, causal=causal))(
            Inputs(q, k, v, None, valid)
        )
        np.testing.assert_allclose(jnp.where(valid[..., None, None], expected, 0), out, atol=1e-6)


@pytest.mark.parametrize(
    "spec", ["local(window=16)", "linear", "linformer(rank=32)", "uniform", "identity"]
)
def test_no_array_of_n_by_n(spec):
    attention, n = parse(spec), 8192
    shape = Shape(n, 1, 8, 8)
    params = jax.eval_shape(lambda key: attention.init(key, shape), jax.random.key(0))
    qkv = jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32)
    valid = jax.ShapeDtypeStruct((1, n), bool)
    for causal in (False, True)[: 1 + attention.traits.causal]:
        traced = jax.make_jaxpr(
            jax.grad(
                lambda v, q, p, valid, causal=causal: jnp.sum(
                    attention(p, Inputs(q, q, v, None, valid), causal=causal)
                )
            )
        )(qkv, qkv, params, valid)
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

    for spec, power in (
        ("full", 2),
        ("local(window=64)", 1),
        ("strided", 2),
        ("linear", 1),
        ("linformer", 1),
        ("uniform", 1),
    ):
        assert cost(spec, 8192).flops / cost(spec, 4096).flops == pytest.approx(2**power, rel=0.01)
    assert cost("full", 4096).flops == 16 * cost("strided(stride=16)", 4096).flops
    assert cost("full", 4096).flops > 8 * cost("local(window=64)", 4096).flops
    assert cost("full", 4096).state_bytes == 2 * 4096 * 128 * 4
    assert cost("local(window=64)", 4096).state_bytes == 2 * 65 * 128 * 4
    assert cost("linear", 4096).state_bytes == cost("linear", 64).state_bytes
    assert cost("linformer(rank=8)", 100).parameters == 2 * 4 * 8 * 100
