"""Full attention by chunks and by a fused kernel, against the dense definition.

Outputs, gradients and second order are compared.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention.conformance.case import arrays, quick
from dartformer.errors import InputError
from dartformer.kernels.chunked import chunked_attention
from dartformer.kernels.flash import choose, cudnn_attention, cudnn_refusal, full_attention, fused
from dartformer.kernels.softmax import softmax_attention
from dartformer.kernels.target import Target, here, of_device

B, N, H, D = 2, 21, 2, 4


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        return [jnp.asarray(rng.standard_normal((B, N, H, D))) for _ in range(4)]


VALID = np.random.default_rng(1).random((B, N)) < 0.6
VALID[1] = False


def derivatives(function, q, k, v, direction):
    """Of a function that is not linear: output, gradient, and its derivative along `direction`."""

    def loss(*arrays_in):
        return (function(*arrays_in) ** 2 * direction).sum()

    gradient = jax.grad(loss, (0, 1, 2))
    tangents = (k, v, q)
    return function(q, k, v), gradient(q, k, v), jax.jvp(gradient, (q, k, v), tangents)[1]


@pytest.mark.parametrize(("causal", "masked"), [(False, True), (True, False)])
def test_chunked_is_the_definition(inputs, causal, masked):
    with jax.enable_x64(True):
        valid = jnp.asarray(VALID) if masked else None
        slopes = jnp.array([0.5, 0.1]) if masked else None
        want, got = (
            quick(
                lambda *a, f=f, o=o: derivatives(
                    lambda q, k, v: f(q, k, v, causal=causal, valid=valid, slopes=slopes, **o), *a
                )
            )(*inputs)
            for f, o in ((softmax_attention, {}), (chunked_attention, {"tile": 8}))
        )
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, atol=1e-12)
        if masked:
            assert (got[0][1] == 0).all()  # nothing to see: exactly zero, and so is every gradient
            assert all((g[1] == 0).all() for g in got[1])


@pytest.mark.parametrize(
    ("length", "causal", "masked"),
    [(21, False, True), (21, True, False), (21, False, False), (20, True, True), (1, False, False)],
)
def test_the_fused_kernel_has_the_derivatives_of_the_definition(inputs, length, causal, masked):
    """With XLA's form of the fused function in its place; odd lengths have one more token in it."""
    with jax.enable_x64(True):
        arrays_in = [x[:, :length] for x in inputs]
        valid = jnp.asarray(VALID[:, :length]) if masked else None
        rows = 1.0 if valid is None else valid[:, :, None, None]

        def plain(q, k, v):
            return softmax_attention(q, k, v, causal=causal, valid=valid) * rows

        def fast(q, k, v):
            return cudnn_attention(q, k, v, causal=causal, valid=valid, implementation="xla")

        want, got = (quick(lambda *a, f=f: derivatives(f, *a))(*arrays_in) for f in (plain, fast))
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, atol=2e-5)  # XLA's form is float32 inside


def in_a_loop(layer):
    return lambda q: jax.lax.scan(lambda x, _: (layer(x), None), q, None, 2)[0]


def under_a_condition(layer):
    return lambda q: jax.lax.cond(q[0, 0, 0, 0] < 9, layer, lambda x: x, q)


def for_each_example(layer):
    return lambda q: jax.vmap(lambda x: layer(x[None])[0])(q)


@pytest.mark.parametrize(
    "within", [jax.jit, jax.checkpoint, in_a_loop, under_a_condition, for_each_example]
)
def test_the_fused_kernel_keeps_its_derivatives_within_every_transformation(inputs, within):
    valid = jnp.arange(N) < 17

    def plain(q):
        mask = jnp.broadcast_to(valid, q.shape[:2])
        return softmax_attention(q, q, q, valid=mask) * mask[:, :, None, None]

    def fast(q):
        mask = jnp.broadcast_to(valid, q.shape[:2])
        return cudnn_attention(q, q, q, causal=False, valid=mask, implementation="xla")

    def measured(layer, q, direction):
        """The gradient, and second derivatives: forward over reverse, and reverse over reverse."""

        def loss(q):
            return (within(layer)(q) ** 2 * direction).sum()

        gradient = jax.grad(loss)
        twice = jax.grad(lambda q: (gradient(q) * direction).sum())
        return (
            jax.jvp(loss, (q,), (direction,))[1],
            gradient(q),
            jax.jvp(gradient, (q,), (direction,))[1],
            twice(q),
        )

    q, direction = inputs[:2]
    # In float32 the definition itself is off by more than 1e-4 on some processors.
    with jax.enable_x64(True):
        want, got = (quick(lambda *a, f=f: measured(f, *a))(q, direction) for f in (plain, fast))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-4)


def test_one_query_of_many_keys(inputs):
    q, k, v = (x.astype(jnp.float32) for x in inputs[:3])
    q, valid = q[:, :1], jnp.asarray(VALID)
    want = softmax_attention(q, k, v, valid=valid)
    np.testing.assert_allclose(chunked_attention(q, k, v, valid=valid), want, atol=1e-6)
    np.testing.assert_allclose(full_attention(q, k, v, valid=valid), want, atol=1e-6)


def test_the_fused_gradient_is_its_own_and_is_never_differentiated(inputs):
    """First order uses the kernel's gradient, here always 7 g, and second order the definition's."""

    @jax.custom_vjp
    def kernel(q, k, v, lengths):
        return softmax_attention(q, k, v)

    kernel.defvjp(lambda *a: (kernel(*a), None), lambda residuals, g: (7 * g, 7 * g, 7 * g, None))
    q, k, v, direction = (x[:, :5].astype(jnp.float32) for x in inputs)
    function = fused(kernel, lambda q, k, v, lengths: softmax_attention(q, k, v))

    def gradient(of):
        return jax.grad(lambda q: (of(q) * direction).sum())

    actual = gradient(lambda q: function(q, k, v, jnp.zeros(0, jnp.int32)))
    expected = gradient(lambda q: softmax_attention(q, k, v))
    results = quick(
        lambda: (
            actual(q),
            *(
                (jax.jvp(slope, (q,), (v,))[1], jax.vjp(slope, q)[1](v)[0])
                for slope in (actual, expected)
            ),
        )
    )()
    np.testing.assert_allclose(results[0], 7 * direction, rtol=1e-6)
    for f, w in zip(*results[1:], strict=True):
        np.testing.assert_allclose(f, w, atol=1e-5)


def test_no_array_of_n_by_n_and_float32_inside():
    def step(q):
        return jax.grad(
            lambda q: chunked_attention(q, q, q, causal=True, tile=64).astype(jnp.float32).sum()
        )(q)

    sizes = [
        max(arrays(jax.make_jaxpr(step)(jnp.ones((1, n, 2, 4), jnp.bfloat16)).jaxpr))
        for n in (1024, 2048)
    ]
    assert sizes[1] < 2048 * 2048 / 8
    assert sizes[1] <= 2.1 * sizes[0]
    q = jnp.full((1, 300, 1, 4), 8.0, jnp.bfloat16)
    v = jnp.asarray(np.random.default_rng(0).standard_normal((1, 300, 1, 4)), jnp.bfloat16)
    out = chunked_attention(q, q, v, tile=50)
    np.testing.assert_allclose(
        out[0, 0, 0].astype(float), v.astype(float).mean((0, 1))[0], atol=2e-3
    )
    assert out.dtype == jnp.bfloat16


def test_dropout_keeps_the_mean_and_needs_a_key(inputs):
    q, k, v = (x.astype(jnp.float32) for x in inputs[:3])
    outs = quick(
        lambda keys: jax.lax.map(
            lambda key: chunked_attention(q, k, v, dropout=0.4, key=key, tile=8), keys
        )
    )(jax.random.split(jax.random.key(0), 400))
    assert outs.std(0).min() > 1e-3
    np.testing.assert_allclose(
        outs.mean(0), softmax_attention(q, k, v), atol=6 * float(outs.std(0).max()) / 20
    )
    with pytest.raises(ValueError, match="needs a PRNG key"):
        chunked_attention(q, k, v, dropout=0.4)


def gpu(capability, platform_version="PJRT C API\ncuda 12090"):
    device = types.SimpleNamespace(
        platform="gpu",
        client=types.SimpleNamespace(platform_version=platform_version),
        device_kind="a GPU",
        compute_capability=capability,
        memory_stats=lambda: {"bytes_limit": 10**9},
    )
    return of_device(device)


def test_a_target_says_what_a_device_is():
    assert gpu("9.0") == Target("gpu", "a GPU", 9.0, 10**9)
    # No CUDA GPU has such a capability, and its name is no number.
    assert gpu("gfx90a", "rocm 60300") == Target("gpu", "a GPU", 0.0, 10**9)
    assert here() == Target("cpu", "cpu")
    assert gpu("9.0").accelerated
    assert not here().accelerated


def test_a_tpu_takes_splash_attention_for_many_tokens():
    tpu = Target("tpu", "TPU v5 lite")
    assert choose("auto", jnp.bfloat16, 64, 4096, target=tpu) == "splash"
    assert choose("auto", jnp.float32, 32, 4096, target=tpu) == "splash"
    assert choose("auto", jnp.float32, 8, 4096, target=tpu) == "chunked"
    assert choose("splash", jnp.float32, 8, 4096, target=tpu) == "splash"
    assert choose("auto", jnp.bfloat16, 64, 100, target=tpu) == "dense"
    assert choose("splash", jnp.bfloat16, 64, 100, target=tpu) == "splash"
    assert choose("auto", jnp.bfloat16, 64, 4096, order=2, target=tpu) == "chunked"
    for changes, reason in (
        ({"dtype": jnp.float16}, "bfloat16 or float32, got float16"),
        ({"head_dim": 264}, "at most 256, got 264"),
        ({"slopes": True}, "ALiBi"),
        ({"dropout": 0.1}, "no attention dropout"),
        ({"keys": 9}, "as many queries as keys"),
        ({"target": gpu("9.0")}, "needs a TPU, and this is a GPU"),
    ):
        options = {"dtype": jnp.bfloat16, "head_dim": 64, "target": tpu, **changes}
        with pytest.raises(InputError, match=reason):
            choose("splash", length=4096, **options)


def test_the_choice_is_ordered_and_an_explicit_one_fails_with_the_reason():
    new, old = gpu("9.0"), gpu("8.0")
    assert choose("auto", jnp.bfloat16, 64, 100, target=new) == "cudnn"
    assert choose("auto", jnp.float16, 128, 4096, target=old) == "cudnn"
    assert choose("auto", jnp.bfloat16, 256, 4096, target=new) == "cudnn"
    for changes, reason in (
        ({"dtype": jnp.float32}, "bfloat16 or float16, got float32"),
        ({"head_dim": 20}, "multiple of 8 and at most 128, got 20"),
        ({"head_dim": 136}, "at most 128, got 136"),
        ({"slopes": True}, "ALiBi"),
        ({"dropout": 0.1}, "no attention dropout"),
        ({"keys": 9}, "as many queries as keys"),
        ({"target": gpu("7.5")}, "Ampere GPU or a later one"),
        ({"target": here()}, "needs a CUDA GPU, and this is cpu"),
    ):
        options = {"dtype": jnp.bfloat16, "head_dim": 64, "target": old, **changes}
        if "keys" not in changes:
            assert reason in cudnn_refusal(**options)
        assert choose("auto", length=4096, **options) == "chunked"
        assert choose("auto", length=100, **options) == "dense"
        with pytest.raises(InputError, match=reason):
            choose("cudnn", length=4096, **options)
    assert choose("dense", jnp.bfloat16, 64, 4096, target=new) == "dense"
    # cuDNN's gradient has no derivative. A kernel that is named has those of the definition.
    assert choose("auto", jnp.bfloat16, 64, 4096, order=2, target=new) == "chunked"
    assert choose("cudnn", jnp.bfloat16, 64, 4096, order=2, target=new) == "cudnn"
    with pytest.raises(InputError, match=r"unknown kernel 'flash'.*cudnn, splash, chunked, dense"):
        choose("flash", jnp.float32, 8, 8)
    q = jnp.ones((1, 4, 1, 8))
    with pytest.raises(InputError, match="'cudnn' does not work"):
        full_attention(q, q, q, kernel="cudnn")
